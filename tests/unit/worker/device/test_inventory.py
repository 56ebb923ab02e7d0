"""Which devices there are, and which of them a worker takes, whatever nvidia-smi and CUDA_VISIBLE_DEVICES say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.errors import DeviceError, UsageError
from infra.settings import load_settings
from tests.support.cuda import pretend_nvidia_smi
from worker.device import inventory
from worker.device.inventory import Device, Examination, Listing, choose_devices, list_devices

ROW = "NVIDIA H100 80GB HBM3, 81559, 80994, Disabled"
FOUR = Listing(tuple(Device(str(at), "H100", 0, 0, f"GPU-{at}aaa-{at}", str(at)) for at in range(4)))
SLICES = (Device("MIG-a", "MIG 3g.40gb", 0, 0, "MIG-a", "0"), Device("MIG-b", "MIG 3g.40gb", 0, 0, "MIG-b", "0"))
CUT = Listing((*SLICES, Device("1", "H100", 0, 0, "GPU-1", "1")))


def test_devices_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = f"echo '0, GPU-a, {ROW}'; echo '1, GPU-b, Old, [N/A], [N/A], [N/A]'"
    pretend_nvidia_smi(tmp_path, monkeypatch, lines)

    assert list_devices(tmp_path) == Listing(
        (
            Device("0", "NVIDIA H100 80GB HBM3", 81_559 << 20, 80_994 << 20, "GPU-a", "0"),
            Device("1", "Old", 0, 0, "GPU-b", "1"),  # a worker takes it, too; its memory is not known
        )
    )


def test_without_nvidia_smi_and_without_device_files_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert list_devices(tmp_path) == Listing()


@pytest.mark.parametrize(
    ("script", "files", "trouble"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", 0, "version mismatch"),
        ("echo 'cannot communicate with the NVIDIA driver' >&2; exit 9", 0, "communicate"),
        ("echo 'No devices were found'; exit 6", 2, "No devices were found"),
        (f"echo '0, GPU-a, {ROW}'", 2, "lists 1 of 2"),
        (f"echo '0, GPU-a, {ROW}'; echo 'Unable to determine the device handle' >&2; exit 15", 2, "device handle"),
        ("exec sleep 60", 1, "no answer within"),
    ],
)
def test_an_nvidia_smi_that_fails_hangs_or_lists_too_few_is_a_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, files: int, trouble: str
) -> None:
    monkeypatch.setattr(inventory, "NVIDIA_SMI_S", 0.5)
    pretend_nvidia_smi(tmp_path, monkeypatch, script)
    for at in range(files):
        (tmp_path / f"nvidia{at}").touch()

    assert trouble in list_devices(tmp_path).trouble


def test_an_nvidia_smi_without_any_device_is_a_machine_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_nvidia_smi(tmp_path, monkeypatch, "echo 'No devices were found'; exit 6")

    assert list_devices(tmp_path) == Listing()


def test_device_files_without_nvidia_smi_are_a_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setenv("PATH", str(tmp_path))

    assert list_devices(tmp_path).trouble == "nvidia0 exist and nvidia-smi is not installed"


def test_a_gpu_that_is_cut_is_listed_by_its_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
    if [ "$1" = -L ]; then
      echo 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-a)'
      echo '  MIG 3g.40gb     Device  0: (UUID: MIG-1)'
      echo '  MIG 1g.10gb+me  Device  1: (UUID: MIG-2)'
      echo 'GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-b)'
    else
      echo '0, GPU-a, NVIDIA A100-SXM4-80GB, 81920, 81000, Enabled'
      echo '1, GPU-b, NVIDIA A100-SXM4-80GB, 81920, 81000, Disabled'
    fi"""
    pretend_nvidia_smi(tmp_path, monkeypatch, script)

    found = list_devices(tmp_path)

    assert [(one.id, one.total_bytes >> 30, one.gpu) for one in found.devices] == [
        ("MIG-1", 40, "0"),
        ("MIG-2", 10, "0"),
        ("1", 80, "1"),
    ]
    assert not found.trouble


def none_asked(_: Sequence[str | None]) -> list[Examination]:
    raise AssertionError("torch was asked")


@pytest.mark.parametrize(
    ("wanted", "visible", "listing", "chosen"),
    [
        ("all", None, FOUR, ["0", "1", "2", "3"]),
        ("all", None, Listing(), ["cpu"]),
        ("cpu", None, FOUR, ["cpu"]),
        ("all", "", FOUR, ["cpu"]),
        ("all", "-1", FOUR, ["cpu"]),
        ("all", "NoDevFiles", FOUR, ["cpu"]),
        ("all", "2, 3", FOUR, ["2", "3"]),
        ("all", "2,-1,3", FOUR, ["2"]),
        ("all", "GPU-1aaa", FOUR, ["1"]),
        ("0,1", "2,3", FOUR, ["2", "3"]),
        ("1", "GPU-3,GPU-2", FOUR, ["2"]),
        ("GPU-2", "2,3", FOUR, ["2"]),
        ("cuda:0, 1", None, FOUR, ["0", "1"]),
        ("GPU-3aaa-3", None, FOUR, ["3"]),
        ("all", None, CUT, ["MIG-a", "MIG-b", "1"]),
        ("0", None, CUT, ["MIG-a", "MIG-b"]),
        ("1", None, CUT, ["1"]),
        ("MIG-b", None, CUT, ["MIG-b"]),
        ("all", "MIG-b", CUT, ["MIG-b"]),
        ("0", None, Listing(trouble="nvidia-smi fails"), ["0"]),
        ("all", "0,1", Listing(trouble="nvidia-smi fails"), ["0", "1"]),
    ],
)
def test_devices_are_chosen_as_cuda_counts_them(
    wanted: str, visible: str | None, listing: Listing, chosen: list[str]
) -> None:
    assert choose_devices(wanted, visible=visible, listing=listing, examined=none_asked) == chosen


@pytest.mark.parametrize(
    ("wanted", "visible", "per_worker", "listing", "said"),
    [
        ("gpu", None, 1, FOUR, "expected all, cpu, or indexes"),
        ("", None, 1, FOUR, "expected all, cpu, or indexes"),
        ("4", None, 1, FOUR, "there is no device 4; there are 0, 1, 2, 3"),
        ("0", None, 1, Listing(), "there is no device 0; there are none"),
        ("2", "2,3", 1, FOUR, "CUDA_VISIBLE_DEVICES leaves 2, 3"),
        ("0", "", 1, FOUR, "CUDA_VISIBLE_DEVICES leaves none"),
        ("GPU-1", "2,3", 1, FOUR, "CUDA_VISIBLE_DEVICES leaves 2, 3"),
        ("all", "7", 1, FOUR, "CUDA_VISIBLE_DEVICES names device 7"),
        ("all", "first", 1, FOUR, "CUDA_VISIBLE_DEVICES='first'"),
        ("0,0", None, 1, FOUR, "named twice"),
        ("0,1,2", None, 2, FOUR, "3 devices cannot be shared out 2"),
        ("MIG-a,MIG-b", None, 2, CUT, "MIG"),
    ],
)
def test_what_is_no_choice_is_refused_with_its_reason(
    wanted: str, visible: str | None, per_worker: int, listing: Listing, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        choose_devices(wanted, per_worker=per_worker, visible=visible, listing=listing)


def test_devices_that_nvidia_smi_cannot_list_are_counted_by_torch_or_an_error_but_never_the_processor() -> None:
    broken = Listing(trouble="nvidia-smi fails: Driver/library version mismatch")
    assert choose_devices("all", listing=broken, examined=lambda _: [Examination(names=("H100", "H100"))]) == ["0", "1"]
    with pytest.raises(DeviceError, match=r"mismatch; .*without CUDA.*--devices cpu"):
        choose_devices("all", listing=broken, examined=lambda _: [Examination("a build without CUDA")])
    assert choose_devices("cpu", listing=broken) == ["cpu"]


def test_groups_are_shared_out_in_order() -> None:
    assert choose_devices("all", per_worker=2, listing=FOUR) == ["0,1", "2,3"]


def test_an_empty_variable_hides_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert load_settings().cuda_visible_devices == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1")
    assert load_settings().cuda_visible_devices == "0, 1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert load_settings().cuda_visible_devices is None
