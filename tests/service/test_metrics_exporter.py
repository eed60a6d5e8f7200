"""The exporter with the real pynvml over a library of ours, a real Redis, and with nothing at all."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import as_user
from tests.service.processes import Service, free_port, refused, running

Samples = dict[tuple[str, str], float]


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:

        def start(library: Path | None = None, FAKE: str = "", **env: str) -> Service:  # noqa: N803 (beside the variables)
            port = free_port()
            settings = {f"EXPORTER_{key}": value for key, value in {"HOST": "127.0.0.1", "PORT": str(port), **env}.items()}
            settings |= {"NODE_NAME": "n1"} | ({"LD_LIBRARY_PATH": str(library)} if library else {})
            settings |= {"FAKE_NVML": FAKE} if FAKE else {}
            return stack.enter_context(running("metrics_exporter", port, settings, tmp_path / "exporter.log", "/health"))

        yield start


def scrape(service: Service) -> Samples:
    """(name, GPU, and a MIG instance's UUID behind it) to value."""
    text = httpx.get(f"{service.url}/metrics", timeout=20).text
    return {
        (sample.name, sample.labels.get("gpu", "") + (f" {sample.labels['uuid']}" if "instance" in sample.labels else "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def library(tmp_path: Path, *flags: str) -> Path:
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["gcc", "-shared", "-fPIC", *flags, "-o", str(tmp_path / "libnvidia-ml.so.1"), str(source)], check=True)
    return tmp_path


def test_every_gpu_is_read(exporter: Callable[..., Service], tmp_path: Path) -> None:
    found = scrape(exporter(library(tmp_path)))
    assert found["nvml_up", ""] == 1
    assert (found["nvml_gpu_utilization_ratio", "0"], found["nvml_gpu_utilization_ratio", "1"]) == (0.25, 0.5)
    assert (found["nvml_memory_used_bytes", "0"], found["nvml_memory_total_bytes", "0"]) == (400, 1000)
    assert found["nvml_temperature_celsius", "1"] == 41
    assert found["nvml_power_watts", "0"] == 350
    assert found["nvml_energy_joules_total", "0"] == 7
    assert found["nvml_ecc_uncorrected_errors_total", "0"] == 0


def test_what_a_driver_lacks_is_absent(exporter: Callable[..., Service], tmp_path: Path) -> None:
    found = scrape(exporter(library(tmp_path, "-DWITHOUT_POWER")))
    assert found["nvml_up", ""] == 1
    assert found["nvml_memory_used_bytes", "0"] == 500, "such a driver counts what it reserves as used"
    assert not [name for name, _ in found if "power" in name or "ecc" in name]


def test_b2_a_gpu_that_is_lost_is_told_as_lost_and_hides_no_other(exporter: Callable[..., Service], tmp_path: Path) -> None:
    service = exporter(library(tmp_path), FAKE=str(tmp_path))
    assert (scrape(service)["nvml_gpu_up", "0"], scrape(service)["nvml_gpu_up", "1"]) == (1, 1)
    (tmp_path / "lost-1").touch()
    found = scrape(service)
    assert (found["nvml_up", ""], found["nvml_gpu_up", "0"], found["nvml_gpu_up", "1"]) == (1, 1, 0)
    assert found["nvml_gpu_utilization_ratio", "0"] == 0.25
    assert not [name for name, gpu in found if gpu == "1" and name != "nvml_gpu_up"]
    assert 'nvml_gpu_up{gpu="1",model="NVIDIA H200",node="n1",uuid="GPU-1"} 0.0' in httpx.get(f"{service.url}/metrics").text
    assert (tmp_path / "exporter.log").read_text().count("NVML: GPU 1: got GPU is lost") == 1
    (tmp_path / "lost-1").unlink()
    assert scrape(service)["nvml_gpu_up", "1"] == 1


def test_b2_a_driver_that_hangs_delays_no_scrape(exporter: Callable[..., Service], tmp_path: Path, valkey: str) -> None:
    service = exporter(library(tmp_path), FAKE=str(tmp_path), TIMEOUT_S="0.5", **as_user(valkey, "metrics-exporter", tmp_path))
    (tmp_path / "hung").touch()
    threads = []
    for look in range(20):
        started = time.monotonic()
        found = scrape(service)
        assert time.monotonic() - started < (2 if look else 3), look
        assert (found["nvml_up", ""], found["cache_up", ""]) == (0, 1)
        threads.append(len(list(Path(f"/proc/{service.process.pid}/task").iterdir())))
    assert threads[-1] == threads[0], "one call hangs, and no second was made"
    (tmp_path / "hung").unlink()
    deadline = time.monotonic() + 20
    while scrape(service)["nvml_up", ""] != 1:
        assert time.monotonic() < deadline
    (tmp_path / "hung").touch()
    scrape(service)
    service.process.terminate()
    assert service.ended() == 0, "a call that hangs does not keep the process"


def test_b2_a_driver_that_goes_away_ends_the_process_which_could_never_load_a_new_one(
    exporter: Callable[..., Service], tmp_path: Path
) -> None:
    service = exporter(library(tmp_path), FAKE=str(tmp_path))
    assert scrape(service)["nvml_up", ""] == 1
    (tmp_path / "gone").touch()
    with pytest.raises(httpx.HTTPError):
        scrape(service)
    assert service.ended() == 1
    assert "ending, to load the driver's library anew" in (tmp_path / "exporter.log").read_text()


@pytest.mark.parametrize("flags", [[], ["-DWITHOUT_POWER"]], ids=["today", "a driver before 535"])
def test_a_gpu_that_is_held_back_says_why(exporter: Callable[..., Service], tmp_path: Path, flags: list[str]) -> None:
    service = exporter(library(tmp_path, *flags), FAKE=str(tmp_path))

    def reasons() -> dict[tuple[str, str], float]:
        families = text_string_to_metric_families(httpx.get(f"{service.url}/metrics", timeout=20).text)
        samples = [sample for family in families for sample in family.samples if sample.name == "nvml_clocks_held_back"]
        return {(sample.labels["gpu"], sample.labels["reason"]): sample.value for sample in samples}

    none = {(gpu, reason): 0.0 for gpu in ("0", "1") for reason in ("power", "heat", "hardware")}
    assert reasons() == none
    (tmp_path / "hot").touch()
    assert reasons() == none | {("1", "power"): 1, ("1", "heat"): 1}


def test_mig_instances_are_read(exporter: Callable[..., Service], tmp_path: Path) -> None:
    (tmp_path / "mig").touch()
    found = scrape(exporter(library(tmp_path), FAKE=str(tmp_path)))
    assert {gpu: value for (name, gpu), value in found.items() if name == "nvml_mig_memory_used_bytes"} == {"0 MIG-0": 4, "0 MIG-2": 6}
    assert {value for (name, _), value in found.items() if name == "nvml_mig_memory_total_bytes"} == {16}
    assert ("nvml_gpu_utilization_ratio", "0") not in found
    assert found["nvml_gpu_utilization_ratio", "1"] == 0.5
    assert (found["nvml_memory_total_bytes", "0"], found["nvml_gpu_up", "0"]) == (1000, 1)


def test_without_a_driver_it_says_so_once_and_stays(exporter: Callable[..., Service], tmp_path: Path) -> None:
    service = exporter()
    assert scrape(service) == {("nvml_up", ""): 0}
    assert scrape(service) == {("nvml_up", ""): 0}
    assert (tmp_path / "exporter.log").read_text().count("want the NVIDIA driver's library") == 1


def test_the_cache_is_read_with_its_password(exporter: Callable[..., Service], valkey: str, tmp_path: Path) -> None:
    found = scrape(exporter(NVML="0", **as_user(valkey, "metrics-exporter", tmp_path)))
    assert found["cache_up", ""] == 1
    assert found["cache_max_memory_bytes", ""] == 64 * 2**20
    assert not [name for name, _ in found if name.startswith("nvml")]


def test_the_result_of_a_scan_is_told_as_soon_as_there_is_one(exporter: Callable[..., Service], tmp_path: Path) -> None:
    file = tmp_path / "scan.json"
    service = exporter(NVML="0", SCAN_FILE=str(file))
    assert scrape(service) == {}
    file.write_text(json.dumps({"finished": 1_800_000_000, "images": 9, "unread": 1, "vulnerabilities": {"critical": 2, "high": 3}}))
    text = httpx.get(f"{service.url}/metrics", timeout=20).text
    wanted = {
        ("image_scan_timestamp_seconds", ""): 1_800_000_000,
        ("image_scan_images", ""): 9,
        ("image_scan_unread_images", ""): 1,
        ("image_scan_vulnerabilities", "critical"): 2,
        ("image_scan_vulnerabilities", "high"): 3,
    }
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {(sample.name, sample.labels.get("severity", "")): sample.value for sample in samples} == wanted


@pytest.mark.parametrize("content", ["", "[]", '{"finished": "now"}', '{"vulnerabilities": {"x": 1}}', "[" * 100_000])
def test_a_file_that_is_no_result_of_a_scan_is_said_once_and_ends_nothing(
    exporter: Callable[..., Service], tmp_path: Path, content: str
) -> None:
    (tmp_path / "scan.json").write_text(content)
    service = exporter(NVML="0", SCAN_FILE=str(tmp_path / "scan.json"))
    assert [scrape(service) for _ in range(2)] == [{}, {}]
    assert service.log.read_text().count("got no result of a scan, want one; run make scan again") == 1


def test_a_dead_target_is_down_and_nothing_else(exporter: Callable[..., Service]) -> None:
    found = scrape(exporter(NVML="0", CACHE_URL=f"redis://127.0.0.1:{free_port()}/0"))
    assert found == {("cache_up", ""): 0}


def test_bad_settings_are_one_clear_line() -> None:
    status, errors = refused("metrics_exporter", {"EXPORTER_CACHE_URL": "ollama"})
    assert status == 2
    assert "error: EXPORTER_CACHE_URL: got 'ollama', want" in errors
    status, errors = refused("metrics_exporter", {"EXPORTER_CACHE_URL": "redis:/:hunter2@cache", "EXPORTER_TIMEOUT": "1"})
    assert "error: EXPORTER_TIMEOUT: got an unknown variable, want one of EXPORTER_" in errors
    assert "EXPORTER_CACHE_URL: got '…@cache', want" in errors
    assert "hunter2" not in errors
