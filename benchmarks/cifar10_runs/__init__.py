"""Steps of `benchmarks/cifar10.py`: the runs and their order, training, evaluation, tables."""
