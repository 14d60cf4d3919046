"""SAM and the losses in other people's training loops; skipped where they are absent.

The lines of each test are those that the chapter "In your own code" shows.
"""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import saddlebook as sb
from saddlebook.losses import LDAMLoss, VSLoss

pytestmark = pytest.mark.filterwarnings("default")  # of their packages, not ours


def digits():
    found = sb.data.load("digits")
    tail = sb.data.long_tail(found, sb.data.class_counts(80, 10, 10))
    images = tail.train_images.float().flatten(1) / 255
    return TensorDataset(images, tail.train_labels)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(192, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
    )


def loader(rows):
    return DataLoader(
        rows, 64, shuffle=True, generator=torch.Generator().manual_seed(0)
    )


def around(model):
    return sb.SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)


def plain(epochs, loss_kind):
    """The same training in a loop of one's own."""
    rows, model = digits(), network()
    loss_of, optimizer = loss_kind.from_labels(rows.tensors[1]), around(model)
    batches = loader(rows)
    for _ in range(epochs):
        for images, labels in batches:

            def closure(images=images, labels=labels):
                optimizer.zero_grad()
                loss = loss_of(model(images), labels)
                loss.backward()
                return loss

            optimizer.step(closure)
    return model


def assert_same(model, other):
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.cpu(), b, rtol=1e-5, atol=1e-6)


def test_lightning_with_manual_optimization(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Lit(lightning.LightningModule):
        def __init__(self, counts):
            super().__init__()
            self.automatic_optimization = False
            self.model, self.loss = network(), VSLoss(counts)

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            images, labels = batch
            self.manual_backward(self.loss(self.model(images), labels))
            optimizer.first_step(zero_grad=True)
            self.manual_backward(self.loss(self.model(images), labels))
            optimizer.step()
            optimizer.zero_grad()

        def configure_optimizers(self):
            return around(self.model)

    rows = digits()
    module = Lit(Counter(rows.tensors[1].tolist()))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader(rows))
    assert trainer.global_step > 0
    assert_same(module.model, plain(2, VSLoss))
    saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["rho"] == 0.05


@pytest.mark.parametrize("form", ["steps", "closure"])
def test_accelerate(form):
    accelerate = pytest.importorskip("accelerate")
    rows, model = digits(), network()
    loss_of, accelerator = (
        LDAMLoss.from_labels(rows.tensors[1]),
        accelerate.Accelerator(cpu=True),
    )
    model, optimizer, batches = accelerator.prepare(model, around(model), loader(rows))
    for _ in range(2):
        for images, labels in batches:

            def closure(images=images, labels=labels):
                optimizer.zero_grad()
                loss = loss_of(model(images), labels)
                accelerator.backward(loss)
                return loss

            if form == "closure":
                optimizer.step(closure)
                continue
            closure()
            optimizer.optimizer.first_step(zero_grad=True)
            accelerator.backward(loss_of(model(images), labels))
            optimizer.step()
    again = plain(2, LDAMLoss)
    assert_same(model, again)


def test_the_trainer_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, images, labels=None):
            return {"logits": self.model(images)}

    class SharpTrainer(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            first = super().training_step(model, inputs, num_items_in_batch)
            sam = getattr(self.optimizer, "optimizer", self.optimizer)
            sam.first_step(zero_grad=True)
            super().training_step(model, inputs, num_items_in_batch)
            return first  # and the Trainer's own optimizer.step() is the second step

    rows, model = digits(), Wrapped()
    loss_of = VSLoss.from_labels(rows.tensors[1])
    items = [{"images": x, "labels": y} for x, y in rows]
    trainer = SharpTrainer(
        model,
        transformers.TrainingArguments(
            str(tmp_path), num_train_epochs=2, per_device_train_batch_size=64,
            max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no",
            disable_tqdm=True, lr_scheduler_type="constant",
            remove_unused_columns=False,
        ),
        train_dataset=items,
        optimizers=(around(model), None),
        compute_loss_func=lambda out, labels, num_items_in_batch=None: loss_of(
            out["logits"], labels
        ),
    )  # fmt: skip
    start = loss_of(model.eval().model(rows.tensors[0]), rows.tensors[1]).item()
    trainer.train()
    end = loss_of(model.eval().model(rows.tensors[0]), rows.tensors[1]).item()
    assert end < 0.7 * start
    assert trainer.state.global_step == 2 * -(-len(rows) // 64)
