"""What the doctor knows of devices and checkpoints without loading anything."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from infra.guard_catalogue import GUARDS
from libra_fleet.doctor import Finding, Level, machine
from libra_fleet.doctor.machine import check_checkpoint, check_devices, parameters
from tests.support.checkpoints import small_tokenizer, write_checkpoint, write_model
from worker.device.inventory import Device, Examination, Listing

GIB = 2**30
SMALL = Device("0", "small", 8 * GIB, 8 * GIB, gpu="0")
LARGE = Device("1", "large", 80 * GIB, 79 * GIB, gpu="1")
OLD = Examination(names=("Tesla T4",), capability=(7, 5))
SEVEN_B = "libra-guard-qwen2.5-7b-instruct"


def wrong(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(one.check, one.level.value, one.what) for one in findings if one.level is not Level.GOOD]


def examined(
    wanted: str,
    guard: str,
    devices: list[Device],
    visible: str | None = None,
    trouble: str = "",
    **seen: Examination,
) -> list[tuple[str, str, str]]:
    """What is wrong with these devices, where torch finds nothing wrong but what `seen` says by device (`_0`)."""
    found = check_devices(
        wanted,
        guard,
        None,
        visible=visible,
        listing=Listing(tuple(devices), trouble),
        examined=lambda groups: [seen.get(f"_{group}", Examination()) for group in groups],
    )
    return wrong(list(found))


@pytest.mark.parametrize(
    ("hub_id", "size"),
    [
        ("01-ai/Yi-1.5-9B-Chat", 9e9),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("kakaocorp/kanana-safeguard-prompt-2.1b", 2.1e9),
        ("ibm-granite/granite-guardian-3.2-3b-a800m", 3e9),
        ("allenai/wildguard", None),
    ],
)
def test_a_models_own_name_says_its_size_or_nothing_does(hub_id: str, size: float | None) -> None:
    (card,) = [card for card in GUARDS.values() if card.hub_id == hub_id]
    assert card.nominal_parameters == size


def test_a_guard_that_fits_is_fine_and_one_that_does_not_is_an_error() -> None:
    assert examined("1", SEVEN_B, [SMALL, LARGE]) == []
    (found,) = examined("0", SEVEN_B, [SMALL, LARGE])
    assert found[:2] == ("device memory", "error")
    assert "7 billion parameters in bfloat16 are 13.0 GiB by its name, up to 14.2 GiB in fact; " in found[2]
    assert "device 0 (small) has 8.0 GiB" in found[2]
    assert [check for check, _, _ in examined("all", SEVEN_B, [SMALL, LARGE])] == ["device memory"]
    assert examined("all", SEVEN_B, [SMALL, LARGE], visible="1") == []


def test_memory_that_others_hold_is_a_warning() -> None:
    (found,) = examined("1", SEVEN_B, [LARGE._replace(free_bytes=10 * GIB)])
    assert found[:2] == ("device memory", "warning")
    assert "10.0 GiB free" in found[2]


def test_devices_that_are_not_there_or_no_devices_at_all_are_named() -> None:
    assert examined("3", SEVEN_B, [LARGE])[0] == ("devices", "error", "there is no device 3; there are 1")
    assert examined("gpu", SEVEN_B, [LARGE])[0][:2] == ("devices", "error")
    assert examined("0", "wildguard", [SMALL])[0][:2] == ("device memory", "warning")
    assert examined("0", "fake", [SMALL]) == []


def test_a_device_that_torch_cannot_use_is_an_error_and_the_others_are_weighed() -> None:
    lost = Examination(unusable="torch gave no answer within 120 s")
    found = examined("all", "libra-guard-qwen2.5-7b-instruct", [LARGE, SMALL._replace(id="2", gpu="2")], _1=lost)
    assert [one[:2] for one in found] == [("devices", "error"), ("device memory", "error")]
    assert found[0][2] == "device 1: torch gave no answer within 120 s"
    assert "device 2 (small)" in found[1][2]


def test_devices_that_nvidia_smi_cannot_list_are_never_the_processor_in_silence() -> None:
    mute = Examination(unusable="torch 2.13.0+cpu is a build without CUDA")
    (found,) = examined("all", "fake", [], trouble="nvidia-smi fails: Driver/library version mismatch", _None=mute)
    assert found[:2] == ("devices", "error")
    assert "version mismatch" in found[2]
    assert "build without CUDA" in found[2]
    assert examined("cpu", "fake", [], trouble="nvidia-smi fails") == []


def test_weights_that_leave_no_room_for_cuda_itself_are_an_error_in_the_type_that_the_card_computes() -> None:
    size = int(14.58 * GIB)  # as torch sees it; 7.6 billion real parameters take 14.2 of them
    (found,) = examined("0", SEVEN_B, [Device("0", "Tesla T4", size, size, gpu="0")], _0=OLD)
    assert found[:2] == ("device memory", "error")
    assert "in float16 are 13.0 GiB by its name, up to 14.2 GiB in fact; device 0 (Tesla T4) has 14.6 GiB" in found[2]
    assert examined("0", SEVEN_B, [LARGE._replace(id="0", gpu="0")], _0=OLD) == []


def write_safetensors(path: Path, shape: list[int], *, data: bytes) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": shape, "data_offsets": [0, 6]}, "__metadata__": {}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_a_whole_checkpoint_is_fine_and_its_parameters_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    write_model(write_checkpoint(tmp_path, small_tokenizer(whole=["安全", "不安全"])))
    assert wrong(list(check_checkpoint("mine", str(tmp_path)))) == []
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(tmp_path)
    assert parameters("mine", str(tmp_path)) == sum(weight.numel() for weight in model.parameters())


def test_weights_that_were_cut_off_are_an_error_and_not_counted(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    write_safetensors(tmp_path / "model.safetensors", [2, 3], data=b"123")
    [(check, level, what)] = wrong(list(check_checkpoint("mine", str(tmp_path))))
    assert (check, level) == ("checkpoint", "error")
    assert "model.safetensors has" in what
    assert parameters("mine", str(tmp_path)) is None


def test_without_torch_the_headers_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "installed_version", lambda _: None)
    write_checkpoint(tmp_path, small_tokenizer(whole=["安全", "不安全"]))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"abcd")
    [finding] = check_checkpoint("mine", str(tmp_path))
    assert "torch and transformers are not installed here" in finding.what
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "git lfs pull" in next(iter(check_checkpoint("mine", str(tmp_path)))).what


def test_what_is_not_here_is_an_error_for_a_path_and_a_warning_for_the_hub(tmp_path: Path) -> None:
    assert wrong(list(check_checkpoint("mine", str(tmp_path / "no"))))[0][:2] == ("checkpoint", "error")
    assert wrong(list(check_checkpoint(SEVEN_B, None)))[0][:2] == ("checkpoint", "warning")
    assert wrong(list(check_checkpoint("no-such-guard", None)))[0][:2] == ("checkpoint", "error")
