"""Certificates beside a worst-case search: lower bounds on robust accuracy, from the same batches, cached with them."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rampart.attacks import NormName
from rampart.attacks.input_gradient import predict
from rampart.bounds import Method, certified_mask, certified_radii, interval_logits
from rampart.bounds.certificates import MARGIN, METHODS
from rampart.evaluation.cache import ResultCache
from rampart.evaluation.code_hash import hash_bounds
from rampart.evaluation.results import BoundStage, Certificates

MAX_EPS = 1.0  # The ball of this radius holds all images.
TOLERANCE = 1 / 256
"""Largest distance of a certified radius from the largest eps that the bounds certify, relative to the largest eps of
the evaluation."""


class Certifier:
    """Find the images that no perturbation can make a network misclassify, and how large a perturbation may be.

    Args:
        network: Network to bound, in eval mode. It computes the same function as the attacked one, up to rounding, but
            may have tighter bounds.
        required: Raise an error if there can be no certificates. Otherwise the report gives the reason.
        methods: Bounds to use, each for the images that those before it leave open.
        skip_certified: Let the search attack an image that is certified at an eps by its first attack alone, as a check
            of the certificate. No attack can fool it, so the results are the same, in less time.

    Attributes:
        reason: Reason why no image is certified; None if images are.
    """

    def __init__(
        self,
        network: nn.Module,
        required: bool = False,
        methods: Sequence[Method] = METHODS,
        skip_certified: bool = False,
    ) -> None:
        self.network, self.methods, self._required = network, tuple(methods), required
        self.skip_certified = skip_certified
        self.reason: str | None = None

    def check(self, model: nn.Module, images: Tensor, norm: NormName) -> None:
        """Check that the network can be bounded, and that its bounds contain the logits of the attacked network.

        Args:
            model: The attacked network, in eval mode.
            images: ``(N, ...)``, at least one, float, in [0, 1]; a few suffice.
            norm: Norm of the evaluation.

        Raises:
            ValueError: If not, and certificates are required.
        """
        self.reason = self._find_obstacle(model, images, norm)
        if self.reason is not None and self._required:
            raise ValueError(f"certify: {self.reason}; leave out --certify true")

    def certify(
        self, images: Tensor, labels: Tensor, active: Tensor, eps: Sequence[float], cache: ResultCache, name: str
    ) -> Certificates:
        """Return the certificates of a batch, from the cache if they are there and hold.

        Args:
            images: ``(N, ...)``, the batch.
            labels: ``(N,)``, int64.
            active: ``(N,)``, bool: the correctly classified clean images.
            eps: The search's radii on the pixel scale, rising.
            cache: Cached results of the search.
            name: Name of the batch in the cache.
        """
        name = f"certificates-{hash_bounds(self.network, [self.methods, TOLERANCE])[:16]}-{name}"
        read = cache.read(name, "cpu")
        if read is not None and (found := self._unpack(read, eps, len(labels))) and self._hold(found, images, labels):
            return found
        found = self._compute(images, labels, active, eps)
        counts = torch.tensor([[stage.tried, stage.certified, stage.seconds] for stage in found.stages]).double()
        cache.write(name, {"radius": found.radius, "counts": counts, "seconds": torch.tensor(found.seconds)})
        return found

    def _compute(self, images: Tensor, labels: Tensor, active: Tensor, eps: Sequence[float]) -> Certificates:
        """Certify at each eps, the largest first, then search each image's radius between two of them."""
        low = torch.zeros_like(labels, dtype=torch.float64)
        high, left, stages = torch.full_like(low, MAX_EPS), active.clone(), list[BoundStage]()
        for radius in reversed(eps):
            rows = []
            for method in self.methods:
                start, tried = time.perf_counter(), int(left.sum())
                certified = certified_mask(self.network, images, labels, radius, active=left, methods=(method,))
                low[certified] = radius
                left &= ~certified
                count = int((low >= radius).sum())
                rows.append(BoundStage(method, radius, tried, count, time.perf_counter() - start))
            high[left] = radius
            stages[:0] = rows
        start, tolerance = time.perf_counter(), TOLERANCE * eps[-1]
        found = certified_radii(
            self.network, images, labels, high, min_eps=low, tolerance=tolerance, active=active, methods=self.methods
        )
        return Certificates(found.cpu(), stages, time.perf_counter() - start)

    def _unpack(self, read: dict[str, Tensor], eps: Sequence[float], images: int) -> Certificates | None:
        """Return cached certificates; None if they are not of this form."""
        kinds = [(method, radius) for radius in eps for method in self.methods]
        if set(read) != {"radius", "counts", "seconds"}:
            return None
        radius, counts, seconds = read["radius"], read["counts"], read["seconds"]
        if radius.shape != (images,) or counts.shape != (len(kinds), 3) or seconds.numel() != 1:
            return None
        stages = [
            BoundStage(method, size, int(tried), int(certified), spent)
            for (method, size), (tried, certified, spent) in zip(kinds, counts.tolist(), strict=True)
        ]
        return Certificates(radius.double(), stages, float(seconds))

    def _hold(self, found: Certificates, images: Tensor, labels: Tensor) -> bool:
        """Return True if each image is certified at its radius."""
        radius = found.radius.to(labels.device)
        active = radius > 0
        mask = certified_mask(self.network, images, labels, radius, active=active, methods=self.methods)
        return torch.equal(mask, active)

    def _find_obstacle(self, model: nn.Module, images: Tensor, norm: NormName) -> str | None:
        if norm != "Linf":
            return f"there are certificates in Linf alone, and the evaluation is in {norm}"
        if any(module.training for module in self.network.modules()):
            return f"{type(self.network).__name__} is in train mode"
        network = getattr(self.network, "_orig_mod", self.network)  # of torch.compile
        try:
            with torch.no_grad():
                one, other, alone = (interval_logits(network, some, 0.0) for some in (images, images, images[:1]))
        except Exception as error:  # A network may be any code.
            return (str(error).splitlines() or [type(error).__name__])[0]
        if not torch.equal(one.lower, other.lower):
            return f"the bounds of {type(network).__name__} change from pass to pass: it is randomised"
        logits = predict(model, images)
        slack = MARGIN * logits.abs().amax(1, keepdim=True).clamp_min(1)
        if bool(((alone.lower - one.lower[:1]).abs() > slack[:1]).any()):
            return f"the bounds of {type(network).__name__} for an image depend on the other images of the batch"
        if not bool(((logits >= one.lower - slack) & (logits <= one.upper + slack)).all()):
            return f"the bounds of {type(network).__name__} do not contain its logits"
        return None
