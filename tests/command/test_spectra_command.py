"""The spectra command: other people's networks, measured without running their code."""

import json
import os
import resource
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from argparse import Namespace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saddlebook import data, models
from saddlebook.__main__ import main
from saddlebook.command import spectra, subject
from saddlebook.command.spectra import _ticking
from saddlebook.curvature import hessian
from saddlebook.data import folders
from saddlebook.disk.files import save_checkpoint
from saddlebook.errors import CorruptError, UsageError
from saddlebook.experiment import Experiment
from saddlebook.runner import Progress
from saddlebook.scales import at_scale

FACTORY = """
from torch import nn

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.ReLU(), nn.Linear(3, 10))

def broken():
    raise RuntimeError("no weights here")

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(192, 10), nn.Linear(192, 10)

    def forward(self, x):
        return self.a(x.flatten(1)), 3 * self.b(x.flatten(1))

number = 3
"""
SHIPPED = Path(__file__).parents[2] / "results/weights/cifar10lt20_ce-drw_s0.weights"


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.ReLU(), nn.Linear(3, 10))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a factory and its checkpoint, and no CIFAR."""
    (tmp_path / "own.py").write_text(FACTORY)
    torch.save(small().state_dict(), tmp_path / "own.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("SADDLEBOOK_DATA", raising=False)
    sys.modules.pop("own", None)
    return tmp_path


def run(*arguments, checkpoint="own.pth", model="own:small", where="digits"):
    named = ["--model", model] if model else []
    command = ["spectra", checkpoint, "--data", where, *named, "--quiet", *arguments]
    return main([str(part) for part in command])


def said(capsys, *arguments, code, **others):
    """The one line on stderr of a command that ends with ``code``."""
    capsys.readouterr()
    assert run(*arguments, **others) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("saddlebook: ")


def saved(content, path):
    torch.save(content, path)
    return path


class TestMeasuring:
    def test_table_and_record_hold_what_class_spectra_says(self, here, capsys):
        assert run("--classes", "0,7,9") == 0
        out = capsys.readouterr().out.splitlines()
        record = spectra.read_sheet("own-spectra.json")
        digits = data.load("digits")
        images = data.normalise(digits.train_images)
        truth = hessian.class_spectra(
            small(), nn.CrossEntropyLoss(), images, digits.train_labels, [0, 7, 9],
            rtol=1e-3,
        )  # fmt: skip
        assert [item["class"] for item in record["classes"]] == [0, 7, 9]
        for item, line in zip(record["classes"], out[1:], strict=False):
            known = truth[item["class"]]
            assert item["lambda_min"] == pytest.approx(known.lambda_min, rel=1e-5)
            assert item["lambda_max"] == pytest.approx(known.lambda_max, rel=1e-5)
            assert item["trace"] == pytest.approx(known.trace, rel=1e-5)
            assert item["images"] == int((digits.train_labels == item["class"]).sum())
            low, bound = known.lambda_min, known.lambda_min_bound
            assert line.startswith(f"{item['class']} ")
            assert f"{low:.4g} ± {bound:.1g}" in line

    def test_all_views_are_one_loss_and_another_measurement(self, here, capsys):
        assert run("--classes", "9", "--limit", "6", "--views", "--out", "t") == 0
        (item,) = spectra.read_sheet("t.json")["classes"]
        digits = data.load("digits")
        rows = (digits.train_labels == 9).nonzero().flatten()
        six = digits.train_images[rows[data.epoch_order(0, 0, len(rows))[:6]]]
        every = torch.cat([data.normalise(view) for view in data.all_views(six)])
        assert (item["images"], item["views"], len(every)) == (6, 18, 108)
        truth = hessian.spectrum(
            small(), nn.CrossEntropyLoss(), every, torch.full((108,), 9), rtol=1e-3
        )
        assert item["lambda_min"] == pytest.approx(truth.lambda_min, rel=1e-4)
        assert item["lambda_max"] == pytest.approx(truth.lambda_max, rel=1e-4)
        line = said(capsys, "--classes", "9", "--limit", "6", "--out", "t", code=2)
        assert "(views differ)" in line

    def test_loss_and_gradient_are_those_of_the_class(self, here):
        assert run("--classes", "7") == 0
        (item,) = spectra.read_sheet("own-spectra.json")["classes"]
        digits, model = data.load("digits"), small()
        rows = digits.train_labels == 7
        loss = nn.functional.cross_entropy(
            model(data.normalise(digits.train_images[rows])), digits.train_labels[rows]
        )
        loss.backward()
        slope = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert item["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert item["gradient_norm"] == pytest.approx(slope.item(), rel=1e-5)

    def test_another_output_is_another_measurement(self, here, capsys):
        from own import Two

        torch.manual_seed(0)
        torch.save(Two().state_dict(), "two.pth")
        told = {"checkpoint": "two.pth", "model": "own:Two"}
        words = ("--classes", "9", "--limit", "8", "--out", "two", "--output")
        assert run(*words, "0", **told) == 0
        assert "output differ" in said(capsys, *words, "1", code=2, **told)

    def test_the_figure_is_a_whole_file_with_a_panel_a_class(self, here):
        assert run("--classes", "1,2,3") == 0
        text = Path("own-spectra.svg").read_text()
        assert ET.fromstring(text).tag.endswith("svg")
        for number in (1, 2, 3):
            assert f"class {number} {number}" in text

    def test_an_unconverged_end_is_marked_and_never_a_number(self, here, capsys):
        assert run("--classes", "1", "--steps", "2") == 5
        out, err = capsys.readouterr()
        row = out.splitlines()[1].split()
        assert row[3:6] == ["unconverged"] * 3
        assert "did not converge in 2 steps" in err
        assert spectra.read_sheet("own-spectra.json")["classes"][0]["converged"] == [
            False,
            False,
        ]
        # more steps go on from the same record
        assert run("--classes", "1") == 0

    def test_provenance_names_code_and_data_but_no_place(self, here):
        assert run("--classes", "0") == 0
        text = Path("own-spectra.json").read_text()
        record = spectra.read_sheet("own-spectra.json")
        assert str(here) not in text
        digest = record["classes"][0]["provenance"]["data_digest"]
        assert digest == data.load("digits").digest == record["of"]["images"]
        assert record["of"]["checkpoint"] == "own.pth"

    def test_an_export_of_ours_says_itself_what_it_is(self, data_root, capsys, here):
        if data_root is None:
            pytest.skip("needs CIFAR-10")
        told = {"checkpoint": SHIPPED, "model": None, "where": "cifar10"}
        assert run("--root", data_root, "--classes", "truck", "--out", "t", **told) == 0
        (item,) = spectra.read_sheet("t.json")["classes"]
        assert (item["class"], item["images"]) == (9, 50)
        from saddlebook.book import gather

        known = gather.shipped_spectrum(9, root=data_root, results=SHIPPED.parents[1])
        assert item["lambda_max"] == pytest.approx(known.lambda_max, rel=1e-5)
        line = said(capsys, "--root", data_root, "--loss", "vs", code=2, **told)
        assert "leave out --loss" in line

    @pytest.mark.parametrize("optimizer", ["ce-drw", "ce-drw-sam"])
    def test_what_the_book_shows_of_all_views_is_whole_and_converged(self, optimizer):
        path = SHIPPED.with_name(f"cifar10lt100_{optimizer}_s0.weights")
        file = path.with_name(f"{path.stem}-views.json")
        if not file.exists():
            pytest.skip("not measured yet; chapter 11 names the command")
        sheet = spectra.read_sheet(file)
        assert sheet["of"]["weights"] == sha256(path.read_bytes()).hexdigest()
        for item in sheet["classes"]:
            assert item["views"] == 162
            assert item["converged"] == [True, True]

    def test_our_networks_are_seen_in_their_tensors(self, here):
        model = models.build_model("resnet8", 10, 4, True, 3)
        path = saved({"state_dict": model.state_dict()}, here / "cos.pt")
        told = {"checkpoint": path, "model": "resnet8"}
        assert run("--classes", "0", "--loss", "ldam", "--limit", "9", **told) == 0
        (item,) = spectra.read_sheet("cos-spectra.json")["classes"]
        assert item["size"] == sum(p.numel() for p in model.parameters())
        assert item["trace_method"] == "deflated"
        assert item["images"] == 9

    def test_class_folders_are_read_and_cut_by_seed(self, here):
        made = here / "photos"
        generator = np.random.default_rng(0)
        for name in "abcdefghij":
            (made / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(made / name / f"{number}.png")
        (made / "k").mkdir()
        images = folders.find_images(str(made), image_size=8)
        assert images.sizes == (3,) * 10 + (0,)
        assert images.read(2, torch.arange(3)).shape == (3, 3, 8, 8)
        (made / "k").rmdir()
        told = {"where": made}
        assert run("--image-size", "8", "--limit", "2", "--classes", "c", **told) == 0
        (item,) = spectra.read_sheet("own-spectra.json")["classes"]
        assert (item["class"], item["name"], item["images"]) == (2, "c", 2)

    def test_a_long_tail_is_the_published_draw(self):
        images = folders.find_images("digits", imbalance_factor=10, max_count=80)
        dataset = data.load("digits")
        tail = data.long_tail(dataset, data.class_counts(80, 10, 10))
        assert images.counts == images.sizes == tuple(data.class_counts(80, 10, 10))
        wanted = tail.train_images[tail.train_labels == 9]
        assert torch.equal(images.read(9, torch.arange(8)), wanted)
        held = folders.find_images(
            "digits", imbalance_factor=10, max_count=80, held_out=True
        )
        assert held.sizes == (34,) * 10
        assert held.counts == images.counts


class TestKeeping:
    def test_the_same_command_measures_nothing_twice(self, here, monkeypatch):
        assert run("--classes", "0,1") == 0
        first = Path("own-spectra.json").read_bytes()
        monkeypatch.setattr("saddlebook.command.spectra._measured", None)
        assert run("--classes", "1,0") == 0
        assert Path("own-spectra.json").read_bytes() == first

    def test_another_measurement_is_not_written_over(self, here, capsys):
        assert run("--classes", "0") == 0
        line = said(capsys, "--classes", "0", "--seed", "4", code=2)
        assert "seed differ" in line
        assert run("--classes", "0", "--seed", "4", "--out", "other") == 0

    def test_a_stop_keeps_finished_classes(self, here, monkeypatch, capsys):
        def ticking(progress, number, before):
            if number == 2:
                progress.signal = signal.SIGTERM
                progress.stop()
            return _ticking(progress, number, before)

        monkeypatch.setattr("saddlebook.command.spectra._ticking", ticking)
        line = said(capsys, "--classes", "0,2", code=75)
        assert "finished classes are kept" in line
        record = spectra.read_sheet("own-spectra.json")
        assert [item["class"] for item in record["classes"]] == [0]
        monkeypatch.undo()
        os.chdir(here)
        assert run("--classes", "0,2") == 0

    def test_ctrl_c_ends_with_130(self, here, monkeypatch, capsys):
        def pressed(progress, number, before):
            os.kill(os.getpid(), signal.SIGINT)
            return _ticking(progress, number, before)

        monkeypatch.setattr("saddlebook.command.spectra._ticking", pressed)
        assert "the same command" in said(capsys, "--classes", "0", code=130)

    def test_an_edited_record_does_not_verify(self, here, capsys):
        assert run("--classes", "0") == 0
        assert main(["verify", "own-spectra.json"]) == 0
        assert "1 spectra verified" in capsys.readouterr().out
        path = Path("own-spectra.json")
        content = json.loads(path.read_text())
        content["classes"][0]["lambda_min"] = -999.0
        path.write_text(json.dumps(content))
        assert main(["verify", "own-spectra.json"]) == 9
        assert "digest mismatch" in said(capsys, "--classes", "0", code=4)
        path.write_text("{}")
        with pytest.raises(CorruptError, match="no record of the spectra command"):
            spectra.read_sheet(path)

    def test_the_bar_counts_steps_on_stderr(self, capsys):
        bar = Progress(10, unit="step")
        bar.at(4, "class 0")
        bar.close()
        assert "step" in capsys.readouterr().err


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class TestCheckpoints:
    def test_code_in_a_checkpoint_never_runs(self, here, capsys):
        mark = here / "owned"
        path = saved({"state_dict": {"w": Malicious(mark)}}, here / "evil.pt")
        line = said(capsys, checkpoint=path, code=4)
        assert "system" in line
        assert "never run" in line
        assert not mark.exists()
        torch.load(path, weights_only=False)  # the same file is a real attack
        assert mark.exists()

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (None, "No such file"),
            (b"<!DOCTYPE html><html>404</html>", "web page"),
            (b"not a checkpoint", "no PyTorch checkpoint"),
            (b"", "no PyTorch checkpoint"),
            (b"\x80\x02}q\x00.", "no"),
        ],
    )
    def test_files_that_are_no_checkpoint(self, here, capsys, content, match):
        path = here / "x.pth"
        if content is not None:
            path.write_bytes(content)
        assert match in said(capsys, checkpoint="x.pth", code=4)

    def test_a_whole_model_is_refused_by_its_class(self, here, capsys):
        path = saved(small(), here / "whole.pt")
        assert "torch.nn.modules.container.Sequential" in said(
            capsys, checkpoint=path, code=4
        )

    @pytest.mark.parametrize("ending", ["cut", "folder", "tensor"])
    def test_damaged_and_empty_ones(self, here, capsys, ending):
        path = here / "x.pth"
        if ending == "cut":
            path.write_bytes((here / "own.pth").read_bytes()[:900])
        elif ending == "folder":
            path.mkdir()
        else:
            saved(torch.zeros(3), path)
        said(capsys, checkpoint=path, code=4)

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}}},
            lambda s: {"model": {f"module.{k}": t for k, t in s.items()}},
            lambda s: {f"module._orig_mod.{k}": t.half() for k, t in s.items()},
            lambda s: {"net": {"state_dict": {f"model.{k}": t for k, t in s.items()}}},
        ],
    )
    def test_common_wrappings_come_off(self, tmp_path, wrap):
        path = saved(wrap(small().state_dict()), tmp_path / "w.pth")
        found = subject.fit(small(), subject.state_dict(path.read_bytes(), "w"), "w")
        for name, tensor in small().state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-3,
                                       atol=1e-3)  # fmt: skip
        assert not found.training

    def test_a_model_named_model_keeps_its_own_prefix(self):
        model = nn.ModuleDict({"model": nn.Linear(2, 2)})
        assert subject.fit(model, dict(model.state_dict()), "m") is model

    def test_float64_weights_are_measured_in_float64(self):
        twice = subject.fit(small(), small().double().state_dict(), "d")
        assert twice[1].weight.dtype == torch.float64

    def test_names_and_shapes_that_do_not_fit_say_the_nearest(self, here, capsys):
        state = small().state_dict()
        odd = {k.replace("3.weight", "3.wieght"): t for k, t in state.items()}
        path = saved(odd, here / "odd.pth")
        line = said(capsys, checkpoint=path, code=4)
        assert "lacks '3.weight' (nearest in the file: '3.wieght')" in line
        assert "holds '3.wieght' (nearest in the model: '3.weight')" in line
        state["3.bias"] = torch.zeros(7)
        path = saved(state, here / "shape.pth")
        line = said(capsys, checkpoint=path, code=4)
        assert "3.bias is [7] in the checkpoint and [10] in the model" in line

    def test_weights_that_are_not_numbers(self, here, capsys):
        state = small().state_dict()
        state["1.weight"][0, 0] = float("nan")
        path = saved(state, here / "nan.pth")
        assert "'1.weight' holds NaN" in said(capsys, checkpoint=path, code=5)

    def test_a_damaged_export_and_a_training_checkpoint(self, here, capsys):
        path = here / "x.weights"
        path.write_bytes(b"nothing of the kind")
        told = {"checkpoint": path, "model": None}
        assert "damaged" in said(capsys, code=4, **told)
        save_checkpoint(path, {}, {"w": torch.zeros(2)})
        assert "no export" in said(capsys, code=4, **told)

    def test_what_is_measured_is_what_is_hashed(self, here, monkeypatch):
        """The file is another one as soon as it has been read."""
        first = (here / "own.pth").read_bytes()
        torch.manual_seed(1)
        other = saved(nn.Sequential(*small()).state_dict(), here / "other.pth")
        read = torch.load

        def swapped(*arguments, **options):
            (here / "own.pth").write_bytes(other.read_bytes())
            return read(*arguments, **options)

        monkeypatch.setattr(torch, "load", swapped)
        assert run("--classes", "0") == 0
        record = spectra.read_sheet("own-spectra.json")
        assert record["of"]["weights"] == sha256(first).hexdigest()

    @pytest.mark.parametrize(
        "attack", ["stride", "zip bomb", "deep", "cyclic", "sparse"]
    )
    def test_a_checkpoint_that_attacks_its_reader_is_one_line(
        self, here, capsys, attack
    ):
        path = here / "x.pth"
        if attack == "stride":
            wide = torch.ones(1).as_strided((3, 10**11), (0, 0))
            saved(small().state_dict() | {"3.bias": wide}, path)
        elif attack == "sparse":
            saved(small().state_dict() | {"3.bias": torch.eye(9).to_sparse()}, path)
        elif attack == "zip bomb":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
                out.writestr("x/data.pkl", bytes(2**26))
        else:
            inner = {}
            content = inner
            for _ in range(200 if attack == "deep" else 3):
                content = {"model": content}
            if attack == "cyclic":
                inner["model"] = content
            saved(content, path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said(capsys, checkpoint=path, code=4)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < 2**19  # KiB

    @pytest.mark.parametrize("change", ["experiment", "epoch", "shape", "name", "list"])
    def test_an_export_of_another_form_is_one_line(self, here, capsys, change):
        exp = at_scale(Experiment(), "quick")
        model = models.build_model("resnet8", 10, 4, False, 0)
        meta = {"experiment": exp.to_dict(), "epoch": 10}
        tensors = dict(model.state_dict())
        if change == "experiment":
            meta["experiment"] |= {"width": 5}
        elif change == "epoch":
            meta["epoch"] = 9999
        elif change == "shape":
            tensors["linear.bias"] = torch.zeros(3)
        elif change == "name":
            tensors["other"] = tensors.pop("linear.bias")
        else:
            meta = ["a list"]
        save_checkpoint(here / "x.weights", meta, tensors)
        said(capsys, checkpoint="x.weights", model=None, code=4)


ESCAPES = [
    "\x1b[31mred",
    "$\\bad$",
    "a\u202eb",
    "<script>",
    b"\xff\xfe".decode("utf8", "surrogateescape"),
]


@pytest.mark.parametrize("name", ESCAPES)
def test_a_class_name_obeys_nobody(here, capsys, name):
    rows = np.random.default_rng(0).integers(0, 256, (10, 2, 8, 8, 3), dtype=np.uint8)
    for number, pixels in enumerate(rows):
        place = here / "photos" / (name if number == 3 else str(number))
        place.mkdir(parents=True)
        Image.fromarray(pixels[0]).save(place / "a.png")
    number = str(sorted(os.listdir(here / "photos")).index(name))
    assert run("--classes", number, where=here / "photos") == 0
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert ET.fromstring(Path("own-spectra.svg").read_text()).tag.endswith("svg")
    line = said(capsys, "--classes", name + "?", code=2, where=here / "photos")
    assert line.isprintable()


@pytest.mark.parametrize("change", ["of", "classes", "items", "name"])
def test_a_spectra_record_of_another_form_is_one_line(here, capsys, change):
    assert run("--classes", "0") == 0
    content = json.loads(Path("own-spectra.json").read_text())
    told, items = content["of"], content["classes"]
    if change == "of":
        told = ["a list"]
    elif change == "classes":
        items = 3
    elif change == "items":
        items = [{}]
    else:
        del items[0]["name"]
    Path("own-spectra.json").write_bytes(spectra.to_bytes(told, items))
    assert main(["verify", "own-spectra.json"]) == 9
    said(capsys, "--classes", "0", code=4)


class TestModels:
    @pytest.mark.parametrize(
        ("model", "match"),
        [
            (None, "--model is missing"),
            ("resnet9", "did you mean 'resnet8'"),
            ("mobilenet_v4_small", "did you mean 'mobilenet_v3_small'"),
            ("nowhere:net", "'nowhere' cannot be imported (ModuleNotFoundError"),
            ("own:smal", "did you mean 'small'"),
            ("own:number", "no such function"),
            ("own:broken", "no weights here"),
            ("builtins:dict", "gave a dict"),
        ],
    )
    def test_unknown_ones_say_what_to_do(self, here, capsys, model, match):
        assert match in said(capsys, model=model, code=2)

    def test_torchvision_names_take_their_classes_from_the_checkpoint(self):
        from torchvision.models import squeezenet1_1

        state = squeezenet1_1(num_classes=7).state_dict()
        model = subject.named_network("squeezenet1_1", state)
        subject.fit(model, state, "s")
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)

    def test_a_model_of_other_outputs_would_have_wrong_labels(self, here, capsys):
        model = models.build_model("resnet8", 12, 4, False, 0)
        path = saved(model.state_dict(), here / "twelve.pt")
        line = said(capsys, "--classes", "0", checkpoint=path, model="resnet8", code=2)
        assert "12 outputs, digits 10 classes" in line


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (["--classes", "10"], "no class '10' in digits"),
            (["--classes", "-1"], "no class '-1'"),
            (["--classes", "0,,2"], "no class ''"),
            (["--steps", "0"], "--steps 0 must be above 0"),
            (["--batch-size", "0"], "must be above 0"),
            (["--limit", "-2"], "must be above 0"),
            (["--rtol", "nan"], "must be above 0"),
            (["--precision", "fp8"], "unknown precision"),
            (["--loss", "cee"], "did you mean 'ce'"),
            (["--normalise", "imagnet"], "did you mean 'imagenet'"),
            (["--imbalance-factor", "0.01"], "100 means 100:1"),
            (["--image-size", "7"], "does not fit"),
            (["--image-size", "16"], "refuses images of shape"),
        ],
    )
    def test_wrong_ones_are_one_line(self, here, capsys, arguments, match):
        joined = [f"{arguments[0]}={arguments[1]}"]
        assert match in said(capsys, *joined, code=2)
        assert not Path("own-spectra.json").exists()

    def test_a_device_that_is_not_there(self, here, capsys):
        assert "no device" in said(capsys, "--device", "cuda:77", code=6)

    def test_data_that_is_not_there(self, here, capsys):
        assert "neither class folders" in said(capsys, where=here, code=3)
        (here / "a").mkdir()
        (here / "a" / "x.png").write_bytes(b"no image")
        line = said(capsys, "--classes", "0", where=here, code=3)
        assert "cannot be read as an image" in line

    def test_class_folders_without_images_and_of_other_sizes(self, here, capsys):
        for name, pixels in (("a", 8), ("b", 9)):
            (here / name).mkdir()
            Image.new("RGB", (pixels, pixels)).save(here / name / "0.png")
            Image.new("RGB", (8, 8)).save(here / name / "1.png")
        (here / "c").mkdir()
        line = said(capsys, "--classes", "c", where=here, code=2)
        assert line == "class 2 (c) has no images"
        line = said(capsys, "--classes", "b", where=here, code=2)
        assert "give --image-size" in line
        line = said(capsys, "--held-out", where=here, code=2)
        assert "measured whole" in line

    def test_a_folder_with_both_cifars_needs_a_name(self, tmp_path, monkeypatch):
        monkeypatch.setattr(folders.sources, "find_source", lambda name, folder: None)
        with pytest.raises(UsageError, match="cifar10 and cifar100: give --data"):
            folders.find_images(str(tmp_path))


def test_the_installed_command_prints_the_table(here):
    command = [sys.executable, "-m", "saddlebook", "spectra", "own.pth", "--data",
               "digits", "--model", "own:small", "--classes", "0"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, check=True)
    head, row = done.stdout.splitlines()[:2]
    assert head.split() == list(spectra._HEAD)
    assert row.startswith("0 0")
    assert "100%" in done.stderr or "step" in done.stderr


def test_finished_means_converged_or_all_steps_done():
    open_, done = ({"converged": [c, True], "steps": 9} for c in (False, True))
    assert spectra.finished(done, 50)
    assert spectra.finished(open_, 9)
    assert not spectra.finished(open_, 10)
    assert not spectra.finished(None, 1)


def test_options_have_a_name_in_the_subject():
    from saddlebook.command import subject

    options = Namespace(checkpoint="x.weights", model="resnet8")
    for name in subject._OURS[1:]:
        setattr(options, name, None)
    with pytest.raises(UsageError, match="says its own model; leave out --model"):
        subject._exported("x.weights", b"", options)


AVERAGED = torch.optim.swa_utils.AveragedModel
WRAPPINGS = {
    "averaged": lambda m: AVERAGED(m).state_dict(),
    "a NumPy scalar": lambda m: {"state_dict": m.state_dict(), "best": np.float64(0.5)},
    "options": lambda m: {"state_dict": m.state_dict(), "args": Namespace(lr=0.1)},
    "a moving average beside": lambda m: {
        "state_dict": {k: v * 0 for k, v in m.state_dict().items()},
        "state_dict_ema": m.state_dict(),
    },
    "a compiled block": lambda m: {
        k.replace("1.", "1._orig_mod."): v for k, v in m.state_dict().items()
    },
    "compiled in parallel": lambda m: {
        "module._orig_mod." + k: v for k, v in m.state_dict().items()
    },
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_checkpoints_as_common_codes_write_them(kind, tmp_path):
    path = saved(WRAPPINGS[kind](small()), tmp_path / "c.pth")
    model = subject.fit(
        small(), subject.state_dict(path.read_bytes(), "c.pth"), "c.pth"
    )
    for name, tensor in small().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def made_folders(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / path)
    return str(root)


def test_nested_images_are_found_as_torchvision_finds_them(tmp_path):
    root = made_folders(
        tmp_path, "ant/a.png", "ant/x/b.png", "ant/x/y/d.png", "b/c.png"
    )
    assert folders.find_images(root).sizes == (3, 1)


def test_numbered_folders_whose_orders_differ_are_refused_until_one_is_given(tmp_path):
    root = made_folders(tmp_path, "2/a.png", "10/a.png", "10/b.png")
    with pytest.raises(UsageError, match="--class-order text"):
        folders.find_images(root)
    assert folders.find_images(root, class_order="text").class_names == ("10", "2")
    assert folders.find_images(root, class_order="number").class_names == ("2", "10")
    assert folders.find_images(root, class_order="number").sizes == (1, 2)


def test_numbered_folders_of_one_order_need_no_word(tmp_path):
    root = made_folders(tmp_path, "0/a.png", "1/a.png")
    assert folders.find_images(root).class_names == ("0", "1")


def test_a_class_is_meant_by_its_folder_s_name_before_its_number(tmp_path):
    images = folders.find_images(
        made_folders(tmp_path, "1/a.png", "2/a.png", "3/a.png")
    )
    assert spectra._class("2", images) == 1
    assert spectra._class("0", images) == 0
