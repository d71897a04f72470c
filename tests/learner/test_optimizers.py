"""Optimizers against the formulas of their papers, written down again in numpy; their state; and that it resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from headrace_core.errors import InvalidRequest
from headrace_lab.paths import ROOT
from headrace_lab.training.tiny_models import qwen3_config, smollm2_config
from headrace_learner.checkpoints import checkpoint
from headrace_learner.optimizers import OPTIMIZERS
from headrace_learner.optimizers.dct import cosine_basis
from headrace_learner.optimizers.galore import leading_directions, limit_growth
from headrace_learner.training.trainer import Trainer

from .cases import hyperparameters, random_group

LOW_RANK = ("galore", "fira", "dct_adamw")
RATE = 0.03


class OneMatrix(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)))


def optimizer_of(name: str, model: nn.Module, **given: object) -> torch.optim.Optimizer:
    settings = hyperparameters(optimizer=name, learning_rate=RATE, **given)
    return OPTIMIZERS[name](model, settings)


def gradients(count: int, rows: int, columns: int) -> Tensor:
    return torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(3))


def update(model: OneMatrix, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    model.weight.grad = gradient.clone()
    optimizer.step()


# ── the formulas ─────────────────────────────────────────────────────────────────────────────────────────────────────


def by_svd(gradient: np.ndarray, rank: int) -> np.ndarray:
    left = np.linalg.svd(gradient)[0][:, :rank]
    return left * np.sign(left[np.abs(left).argmax(0), np.arange(rank)])


def by_dct(gradient: np.ndarray, rank: int) -> np.ndarray:
    m = len(gradient)
    cosines = np.array([[np.cos(np.pi * k * (2 * j + 1) / (2 * m)) for k in range(m)] for j in range(m)])
    cosines /= np.linalg.norm(cosines, axis=0)
    energy = ((cosines.T @ gradient) ** 2).sum(1)
    return cosines[:, sorted(np.argsort(-energy)[:rank])]


def written_down(name: str, weight: Tensor, given: Tensor, rank: int, interval: int, scale: float) -> np.ndarray:
    """The weights after these gradients, float64; m ≤ n."""
    w = weight.detach().numpy().astype(np.float64)
    m = v = np.zeros((rank, w.shape[1]))
    basis, outside_before = np.zeros((len(w), rank)), 0.0
    for t, gradient in enumerate(given.numpy().astype(np.float64)):
        if t % interval == 0:
            before, basis = basis, (by_dct if name == "dct_adamw" else by_svd)(gradient, rank)
            if name == "dct_adamw":
                m, v = basis.T @ before @ m, np.abs(basis.T @ before @ v)
        r = basis.T @ gradient
        m, v = 0.9 * m + 0.1 * r, 0.95 * v + 0.05 * r**2
        n = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-8)
        step = scale * basis @ n
        if name == "fira":
            uncorrected = m / (np.sqrt(v) + 1e-8)
            outside = (gradient - scale * basis @ r) * np.linalg.norm(uncorrected, axis=0) / np.linalg.norm(r, axis=0)
            if t > 0 and np.linalg.norm(outside) > 1.01 * outside_before:
                outside *= 1.01 * outside_before / np.linalg.norm(outside)
            outside_before = float(np.linalg.norm(outside))
            step = step + outside * np.sqrt(1 - 0.95 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        w = w - RATE * step
    return w


@pytest.mark.parametrize("name", LOW_RANK)
def test_updates_are_the_papers(name: str) -> None:
    model, given = OneMatrix(6, 9), gradients(5, 6, 9)
    expected = written_down(name, model.weight, given, rank=3, interval=2, scale=0.25)
    optimizer = optimizer_of(name, model, optimizer_rank=3, optimizer_interval=2, optimizer_scale=0.25)
    for gradient in given:
        update(model, optimizer, gradient)
    np.testing.assert_allclose(model.weight.detach().numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "interval", "scale"), [("galore", 200, 0.25), ("fira", 200, 0.25), ("dct_adamw", 1, 1)]
)
def test_what_nobody_set_is_as_in_the_papers(name: str, interval: int, scale: float) -> None:
    (group, *_) = optimizer_of(name, OneMatrix(4, 6), optimizer_rank=2).param_groups
    assert (group["interval"], group["scale"]) == (interval, scale)
    (group, *_) = optimizer_of(
        name, OneMatrix(4, 6), optimizer_rank=2, optimizer_interval=7, optimizer_scale=0.5
    ).param_groups
    assert (group["interval"], group["scale"]) == (7, 0.5)


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_high_matrix_is_a_wide_one_transposed(name: str) -> None:
    wide, high = OneMatrix(4, 7), OneMatrix(7, 4)
    with torch.no_grad():
        high.weight.copy_(wide.weight.mT)
    optimizers = [optimizer_of(name, m, optimizer_rank=2, optimizer_interval=2) for m in (wide, high)]
    for gradient in gradients(4, 4, 7):
        update(wide, optimizers[0], gradient)
        update(high, optimizers[1], gradient.mT)
    torch.testing.assert_close(high.weight, wide.weight.mT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LOW_RANK)
def test_at_full_rank_it_is_adamw_in_the_rotated_basis(name: str) -> None:
    """torch's AdamW of PᵀW, P the basis of the first gradient, is the oracle."""
    model, given = OneMatrix(5, 8), gradients(6, 5, 8)
    basis = leading_directions(given[0], 5) if name != "dct_adamw" else cosine_basis(5)
    rotated = nn.Parameter(basis.mT @ model.weight.detach())
    oracle = torch.optim.AdamW([rotated], lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = optimizer_of(
        name, model, optimizer_rank=5, optimizer_interval=100, optimizer_scale=1.0, weight_decay=0.1
    )
    for gradient in given:
        rotated.grad = basis.mT @ gradient
        oracle.step()
        update(model, optimizer, gradient)
    torch.testing.assert_close(model.weight.detach(), basis @ rotated.detach(), rtol=0, atol=2e-6)


def test_leading_directions_keep_as_much_of_the_gradient_as_any_can() -> None:
    gradient = gradients(1, 12, 20)[0] * 1e-25  # its squares are below float32's smallest number
    basis = leading_directions(gradient, 4)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(4), rtol=0, atol=1e-6)
    values = np.linalg.svd(gradient.numpy().astype(np.float64))[1]
    kept = float((basis.double().mT @ gradient.double()).square().sum())
    assert kept == pytest.approx((values[:4] ** 2).sum(), rel=1e-6)


@pytest.mark.parametrize("m", [1, 2, 7, 96])
def test_the_cosine_basis_is_orthonormal(m: int) -> None:
    basis = cosine_basis(m).double()
    torch.testing.assert_close(basis.mT @ basis, torch.eye(m, dtype=torch.float64), rtol=0, atol=1e-7)


def test_columns_that_stay_keep_their_moments() -> None:
    basis, model = cosine_basis(4), OneMatrix(4, 4)
    optimizer = optimizer_of("dct_adamw", model, optimizer_rank=2, optimizer_interval=1)
    state = optimizer.state[model.weight]
    update(model, optimizer, basis @ torch.diag(torch.tensor([0.0, 3.0, 2.0, 0.0])))
    assert state["columns"].tolist() == [1, 2]
    update(model, optimizer, basis @ torch.diag(torch.tensor([0.0, 0.0, 2.0, 4.0])))
    assert state["columns"].tolist() == [2, 3]
    expected = torch.tensor([[0.0, 0.0, 0.9 * 0.2 + 0.2, 0.0], [0.0, 0.0, 0.0, 0.4]])
    torch.testing.assert_close(state["exp_avg"], expected, rtol=0, atol=1e-6)


def test_growth_outside_the_subspace_is_limited() -> None:
    before = torch.tensor(0.0)
    for norm, factor, left in ((2.0, 1.0, 2.0), (4.0, 0.505, 2.02), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (5.0, 1.0, 5.0)):
        assert float(limit_growth(torch.tensor(norm), before)) == pytest.approx(factor)
        assert float(before) == pytest.approx(left)


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_zero_gradient_chooses_no_subspace(name: str) -> None:
    model, given = OneMatrix(4, 6), gradients(2, 4, 6)
    optimizer = optimizer_of(name, model, optimizer_rank=2, optimizer_interval=100)
    start = model.weight.detach().clone()
    update(model, optimizer, torch.zeros(4, 6))
    assert torch.equal(model.weight, start)
    update(model, optimizer, given[0])
    update(model, optimizer, given[1])
    state = optimizer.state[model.weight]
    assert float(state["subspace_age"]) == 2
    if name == "dct_adamw":
        found = cosine_basis(4)[:, state["columns"]].numpy()
        np.testing.assert_allclose(found, by_dct(given[0].numpy(), 2), atol=1e-6)
    else:
        np.testing.assert_allclose(state["basis"].numpy(), by_svd(given[0].numpy(), 2), atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_decoupled_and_of_matrices_only(name: str) -> None:
    model = nn.Linear(8, 6)
    start = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = optimizer_of(name, model, optimizer_rank=4, weight_decay=0.5)
    model.weight.grad, model.bias.grad = torch.zeros(6, 8), torch.zeros(6)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), start[0] * (1 - RATE * 0.5), rtol=0, atol=1e-7)
    assert torch.equal(model.bias, start[1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_regression_is_learned(name: str) -> None:
    torch.manual_seed(0)
    inputs, model = torch.randn(64, 16), nn.Linear(16, 12)
    targets = inputs @ torch.randn(16, 12)
    optimizer = optimizer_of(name, model, optimizer_rank=4, optimizer_interval=5, optimizer_scale=1.0)
    losses = []
    for _ in range(250):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# ── what is taken, and its state ─────────────────────────────────────────────────────────────────────────────────────


def numbers(state: dict[str, Tensor], *names: str) -> int:
    return sum(state[name].numel() for name in names)


def test_state_has_the_size_of_the_formula() -> None:
    m, n, r = 24, 40, 8
    names = {"galore": ("basis",), "fira": ("basis", "outside_norm"), "dct_adamw": ("columns",)}
    formulas = {"galore": m * r + 2 * n * r, "fira": m * r + 2 * n * r + 1, "dct_adamw": 2 * n * r + r}
    for rows, columns in ((m, n), (n, m)):
        full = OneMatrix(rows, columns)
        assert numbers(optimizer_of("adamw", full).state[full.weight], "exp_avg", "exp_avg_sq") == 2 * m * n
        for name, formula in formulas.items():
            model = OneMatrix(rows, columns)
            state = optimizer_of(name, model, optimizer_rank=r).state[model.weight]
            assert numbers(state, "exp_avg", "exp_avg_sq", *names[name]) == formula
            counters = {"step", "subspace_age"}
            assert set(state) == {"exp_avg", "exp_avg_sq", *names[name], *counters}
            assert numbers(state, *counters) == 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_figures_of_the_page_are_those_of_the_model(name: str) -> None:
    """SmolLM2-135M's shapes, rank 64, on torch's meta device: sizes without memory."""
    with torch.device("meta"):
        model = LlamaForCausalLM(smollm2_config())
    optimizer = optimizer_of(name, model, optimizer_rank=64)
    held = sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())
    page = (ROOT / "docs" / "optimizers.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`") and "MiB" in line)
    assert f"{held / 2**20:.0f} MiB" in row


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", LOW_RANK)
def test_embeddings_head_and_narrow_matrices_keep_full_moments(name: str, tied: bool) -> None:
    config = qwen3_config(64, 32, intermediate_size=48, num_hidden_layers=1, head_dim=8, tie_word_embeddings=tied)
    model = Qwen3ForCausalLM(config)
    optimizer = optimizer_of(name, model, optimizer_rank=16)
    low = {n for n, p in model.named_parameters() if "subspace_age" in optimizer.state[p]}
    layer = "model.layers.0"
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert low == {f"{layer}.{n}.weight" for n in names}  # k_proj and v_proj have 8 rows


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_what_is_trained_is_taken(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    optimizer = optimizer_of(name, model, optimizer_rank=2)
    assert set(optimizer.state) == set(model[1].parameters())
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()  # and without gradients nothing moves
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


# ── checkpoints and ranks ────────────────────────────────────────────────────────────────────────────────────────────


class Small(nn.Module):
    """A table, matrices both ways and vectors, as a language model has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(10, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.down(torch.tanh(self.up(self.table(ids))))
        return hidden


def train(model: Small, optimizer: torch.optim.Optimizer, updates: range) -> None:
    for i in updates:
        ids = torch.randint(0, 10, (6,), generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        (model(ids) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("saved_after", [0, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_resumes_bit_for_bit(name: str, saved_after: int, tmp_path: Path) -> None:
    """The subspace changes at the updates 0, 3 and 6: the checkpoints are before, between and at such a change."""
    settings = {"optimizer_rank": 3, "optimizer_interval": 3, "weight_decay": 0.1}
    straight = Small()
    optimizer = optimizer_of(name, straight, **settings)
    train(straight, optimizer, range(saved_after))
    state = {"optimizer": get_optimizer_state_dict(straight, optimizer)["state"]}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    resumed = Small()
    resumed.load_state_dict(straight.state_dict())
    train(straight, optimizer, range(saved_after, 8))

    fresh = optimizer_of(name, resumed, **settings)
    whole = get_optimizer_state_dict(resumed, fresh)
    dcp.load({"optimizer": whole["state"]}, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed, fresh, whole)
    train(resumed, fresh, range(saved_after, 8))
    for key, expected in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], expected)
    for p, again in zip(straight.parameters(), resumed.parameters(), strict=True):
        for key, tensor in optimizer.state[p].items():
            assert torch.equal(fresh.state[again][key], tensor)
            assert fresh.state[again][key].dtype == tensor.dtype


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_trainer_resumes_from_its_checkpoint(name: str, make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    def run(trainer: Trainer, versions: range) -> Trainer:
        for version in versions:
            trainer.step([random_group(10 * version + i) for i in range(4)], version)
        return trainer

    settings = {"optimizer": name, "optimizer_rank": 8, "optimizer_interval": 2, "weight_decay": 0.1}
    straight = run(make_trainer(**settings), range(3))
    path = checkpoint.save(straight, tmp_path, 3)
    resumed = make_trainer(**settings)
    checkpoint.load(resumed, path)
    expected, found = (run(trainer, range(3, 5)).policy.model.state_dict() for trainer in (straight, resumed))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.fixture
def one_of_two() -> Iterator[None]:
    """A process group of two, the other of which is not there: collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.parametrize("name", LOW_RANK)
def test_a_sharded_model_is_refused(name: str) -> None:
    model = nn.Linear(8, 8)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), init_device_mesh("cpu", (2,)), [Shard(0)]))
    assert isinstance(model.weight, DTensor)
    assert len(model.weight.to_local()) == 4
    with pytest.raises(InvalidRequest, match=f"optimizer {name} .* learner_ranks to 1") as refused:
        optimizer_of(name, model)
    assert refused.value.param == "optimizer"
