"""The exporter with the real pynvml over a library of ours, a real Redis, and with nothing at all."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import PASSWORD
from tests.service.processes import Service, free_port, refused, running

Samples = dict[tuple[str, str], float]


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:

        def start(library: Path | None = None, **env: str) -> Service:
            port = free_port()
            settings = {f"EXPORTER_{key}": value for key, value in {"HOST": "127.0.0.1", "PORT": str(port), **env}.items()}
            settings |= {"NODE_NAME": "n1"} | ({"LD_LIBRARY_PATH": str(library)} if library else {})
            return stack.enter_context(running("metrics_exporter", port, settings, tmp_path / "exporter.log", "/health"))

        yield start


def scrape(service: Service) -> Samples:
    """(name, first distinguishing label) to value."""
    text = httpx.get(f"{service.url}/metrics", timeout=20).text
    return {
        (sample.name, sample.labels.get("gpu") or ""): sample.value
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
    assert found["nvml_memory_used_bytes", "0"] == 400
    assert not [name for name, _ in found if "power" in name or "ecc" in name]


def test_without_a_driver_it_says_so_once_and_stays(exporter: Callable[..., Service], tmp_path: Path) -> None:
    service = exporter()
    assert scrape(service) == {("nvml_up", ""): 0}
    assert scrape(service) == {("nvml_up", ""): 0}
    assert (tmp_path / "exporter.log").read_text().count("want the NVIDIA driver's library") == 1


def test_the_cache_is_read_with_its_password(exporter: Callable[..., Service], redis: str, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    found = scrape(exporter(NVML="0", CACHE_URL=redis, CACHE_PASSWORD_FILE=str(password)))
    assert found["cache_up", ""] == 1
    assert found["cache_max_memory_bytes", ""] == 64 * 2**20
    assert not [name for name, _ in found if name.startswith("nvml")]


def test_a_dead_target_is_down_and_nothing_else(exporter: Callable[..., Service]) -> None:
    found = scrape(exporter(NVML="0", CACHE_URL=f"redis://127.0.0.1:{free_port()}/0"))
    assert found == {("cache_up", ""): 0}


def test_bad_settings_are_one_clear_line() -> None:
    status, errors = refused("metrics_exporter", {"EXPORTER_CACHE_URL": "ollama"})
    assert status == 2
    assert "error: EXPORTER_CACHE_URL: got 'ollama', want" in errors
