import pytest
import torch

from metatrain_lorem.training.memory import available_memory, saved_bytes


def test_saved_bytes_of_a_product_of_matrices():
    """Both factors are saved once, however often they are used."""
    a = torch.zeros(100, 20, requires_grad=True)
    b = torch.zeros(20, 50, requires_grad=True)
    assert saved_bytes(lambda: (a @ b) + 2 * (a @ b)) == 4 * (100 * 20 + 20 * 50)


def test_saved_bytes_include_the_graph_of_a_gradient():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)

    def run(create_graph):
        (gradient,) = torch.autograd.grad((x**3).sum(), x, create_graph=create_graph)
        return (gradient**2).sum()

    assert saved_bytes(lambda: run(True)) > saved_bytes(lambda: run(False))


def test_derivatives_are_right_while_counting():
    x = torch.linspace(0, 1, 5, dtype=torch.float64, requires_grad=True)
    second = []

    def run():
        (gradient,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(gradient.sum(), x)[0])

    saved_bytes(run)
    torch.testing.assert_close(second[0], 6 * x.detach())


def test_gives_up_at_the_limit():
    x = torch.ones(1000, requires_grad=True)
    done = []

    def run():
        y = x
        for i in range(100):
            y = y * torch.full_like(x, 2.0)
            done.append(i)

    with pytest.raises(MemoryError):
        saved_bytes(run, limit=20_000)
    assert len(done) < 10


def test_available_memory_is_shared_by_processes():
    alone = available_memory(torch.device("cpu"), 1)
    if alone is None:
        pytest.skip("the free memory is read from /proc/meminfo, on Linux only")
    assert available_memory(torch.device("cpu"), 4) == pytest.approx(alone / 4, rel=0.5)
