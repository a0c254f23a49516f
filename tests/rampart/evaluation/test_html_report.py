import base64
from html.parser import HTMLParser

from rampart.evaluation import Sign, WorstCaseSearch, build_report, render_html
from tests.rampart.evaluation.test_worst_case import STRONG, WEAK, model_and_source

PNG = b"\x89PNG\r\n\x1a\n and the rest"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(signs: list[Sign], title: str = "") -> tuple[dict[str, object], str]:
    search = WorstCaseSearch(*model_and_source(), [WEAK, STRONG], [0.1, 0.3])
    report = build_report(search, search.run(), signs)
    return report, render_html(report, {"curve": PNG}, title)


def test_page_is_well_formed_and_loads_nothing() -> None:
    _, text = page([])
    tags = Tags(text)
    assert tags.open == []
    assert all(address.startswith("data:") for address in tags.addresses)
    assert base64.b64encode(PNG).decode() in text
    assert "<script" not in text


def test_page_shows_the_numbers_of_the_report() -> None:
    report, text = page([])
    for rate in (report["clean"], *report["robust"]):  # type: ignore[misc]
        assert f"{100 * rate['accuracy']:.2f}%" in text
        assert f"<td>{rate['count']}</td>" in text
    for key in ("weights", "images", "code"):
        assert str(report["search"][key])[:64] in text  # type: ignore[index]
    assert "No sign of masked gradients" in text


def test_page_shows_signs_and_images_and_escapes_text() -> None:
    _, text = page([Sign("softmax", "a < b & c", list(range(60)))], title="<b>mine</b>")
    assert "<strong>softmax</strong>: a &lt; b &amp; c." in text
    assert "38, 39, and\n20 more" in text
    assert "&lt;b&gt;mine&lt;/b&gt;" in text
    assert "No sign of masked gradients" not in text
