"""Register, killed before every write and every git command in turn: the rerun ends like an undisturbed one.

Run it by `pytest tests/benchmarks/test_register_kills.py -s`.
"""

from tests.dataset_bench import Bench, killed_and_run_again, register_and_die, store  # noqa: F401


def test_every_point_of_a_registration(tmp_path, store):  # noqa: F811
    undisturbed = Bench(tmp_path / "undisturbed")
    undisturbed.register(keep=2)
    steps = register_and_die(undisturbed, at=10_000)
    for point in range(1, steps + 1):
        killed_and_run_again(tmp_path / f"kill{point}", point, undisturbed)
    print(f"killed before each of {steps} steps: every rerun gave the undisturbed registry and store")
