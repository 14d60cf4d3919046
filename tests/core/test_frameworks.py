"""The lines that the chapter "In your own code" shows, run as they stand there.

Each file of ``book/snippets`` trains the same network, and must end where SAM by hand
ends. Those of frameworks are skipped where these are absent (extra ``frameworks``).
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import saddlebook as sb
from saddlebook.losses import VSLoss, class_weights

SNIPPETS = Path(__file__).parents[2] / "book/snippets"
pytestmark = pytest.mark.filterwarnings("default")  # of their packages, not ours


def rows():
    found = sb.data.load("digits")
    tail = sb.data.long_tail(found, sb.data.class_counts(80, 10, 10))
    images = tail.train_images.float().flatten(1) / 255
    return TensorDataset(images, tail.train_labels)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    )


def around(model):
    return sb.SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)


def start():
    """What a user has before the snippet: data, network, loss, optimizer."""
    images = rows()
    batches = DataLoader(
        images, 64, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    model, labels = network(), images.tensors[1].tolist()
    loss_of = VSLoss.from_labels(labels)
    return {"torch": torch, "model": model, "batches": batches, "labels": labels} | {
        "loss_of": loss_of, "optimizer": around(model),
    }  # fmt: skip


def run(name, **given):
    """The names there are after the snippet."""
    names = {"__name__": name} | start() | given
    exec(compile((SNIPPETS / f"{name}.py").read_text(), name, "exec"), names)
    return names


def by_hand(dtype=None, clip=None, epochs=1):
    """SAM as its paper writes it, without SAM: the weights after the epochs."""
    have = start()
    model, loss_of = have["model"], have["loss_of"]
    params = list(model.parameters())
    base = torch.optim.SGD(params, lr=0.1, momentum=0.9)

    def gradient(images, targets):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = loss_of(model(images), targets)
        return torch.autograd.grad(loss, params)

    for images, targets in (batch for _ in range(epochs) for batch in have["batches"]):
        first = gradient(images, targets)
        norm = torch.stack([g.norm() for g in first]).norm()
        before = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, g in zip(params, first, strict=True):
                p.add_(0.05 * g / norm)
        second = gradient(images, targets)
        with torch.no_grad():
            for p, w, g in zip(params, before, second, strict=True):
                p.copy_(w)
                p.grad = g
        if clip:
            nn.utils.clip_grad_norm_(params, clip)
        base.step()
    return model


def assert_same(model, other, rtol=1e-5, atol=1e-6):
    pairs = zip(other.parameters(), network().parameters(), strict=True)
    assert all(not torch.equal(p, q) for p, q in pairs)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p.cpu(), q, rtol=rtol, atol=atol)


def test_a_loop_of_ones_own():
    assert_same(run("plain")["model"], by_hand())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_automatic_mixed_precision_with_a_scaler(dtype):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows at first
    names = run("amp", device="cpu", dtype=dtype, scaler=scaler)
    stepped = scaler.get_scale() < 2.0**40 if dtype is torch.float16 else True
    assert stepped
    assert all(p.isfinite().all() for p in names["model"].parameters())
    quiet = torch.amp.GradScaler("cpu", init_scale=8.0)
    names = run("amp", device="cpu", dtype=dtype, scaler=quiet)
    assert_same(names["model"], by_hand(dtype, 5.0), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("each_its_own", [False, True])
def test_one_process_of_several(each_its_own, tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        names = run("ddp", each_its_own=each_its_own)
    finally:
        dist.destroy_process_group()
    assert_same(names["model"].module, by_hand())


def test_losses_take_the_labels_as_they_come():
    names = run("losses")
    logits, targets = torch.randn(20, 10), torch.arange(20) % 10
    counts = torch.bincount(rows().tensors[1]).tolist()
    assert names["vs"](logits, targets) == VSLoss(counts)(logits, targets)
    assert torch.equal(names["ce"].weight, class_weights(counts, 0.9999))
    assert names["ldam"].margin[-1] == 0.5


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_with_manual_optimization(precision, tmp_path):
    lightning = pytest.importorskip("lightning")
    have = start()
    module = run("lightning")["Sharp"](have["model"], have["loss_of"])
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, precision=precision,
    )  # fmt: skip
    trainer.fit(module, have["batches"])
    assert trainer.global_step > 0
    dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    assert_same(module.model, by_hand(dtype, epochs=2))
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["rho"] == 0.05


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision):
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    found = run("accelerate", precision=precision)["model"]
    dtype = torch.bfloat16 if precision == "bf16" else None
    # accelerate draws the order of the batches from the same generator
    assert_same(found, by_hand(dtype))


def test_the_trainer_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, images, labels=None):
            return {"logits": self.model(images)}

    images, model = rows(), Wrapped()
    loss_of = VSLoss.from_labels(images.tensors[1])
    settings = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=64,
        use_cpu=True, report_to=[], save_strategy="epoch", disable_tqdm=True,
        lr_scheduler_type="constant", remove_unused_columns=False,
    )  # fmt: skip
    items = [{"images": x, "labels": y} for x, y in images]

    def loss():
        return loss_of(model.eval().model(images.tensors[0]), images.tensors[1]).item()

    before = loss()
    names = run(
        "trainer", model=model, settings=settings, rows=items, optimizer=around(model)
    )
    assert loss() < 0.7 * before
    steps = 2 * -(-len(images) // 64)
    assert names["trainer"].state.global_step == steps
    path = tmp_path / f"checkpoint-{steps}" / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    assert saved["param_groups"][0]["rho"] == 0.05
