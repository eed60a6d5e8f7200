"""What only a GPU shows: the exporter beside nvidia-smi, models of real shapes in llama.cpp behind our model server, a replica of the fleet
whose model is on the GPU, or is not. Writes bench/results/gpu.json.

On a machine with an NVIDIA GPU and nothing else on it, a CUDA build of llama.cpp's `llama-server`, and Ollama; five minutes:
    python -m bench.gpu LLAMA_SERVER OLLAMA
One part alone, `model_server` or `fleet`; what the last run on such a card said of the other is kept:
    python -m bench.gpu LLAMA_SERVER OLLAMA PART
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from bench.conditions import conditions, keep
from bench.gpu.engine import engine
from bench.gpu.exporter import compared, exporter
from bench.gpu.fleet import fleet
from bench.gpu.machine import smi
from bench.processes import end_with_us

RESULT = Path(__file__).parents[1] / "results" / "gpu.json"
PARTS = ("model_server", "fleet")


def main(binary: str, ollama: str, only: str = "") -> None:
    end_with_us()
    name, driver, total = smi("name,driver_version,memory.total")
    record: dict[str, Any] = conditions("python -m bench.gpu LLAMA_SERVER OLLAMA")
    record["gpu"] = {"name": name, "driver": driver, "mib": int(total)}
    version = subprocess.run([binary, "--version"], capture_output=True, text=True).stderr.splitlines()
    record["versions"]["llama.cpp"] = next((line for line in version if line.startswith("version")), "")
    if only and RESULT.exists():
        before: dict[str, Any] = json.loads(RESULT.read_text())
        record |= {part: before[part] for part in PARTS if part in before and before["gpu"] == record["gpu"]}
    with tempfile.TemporaryDirectory(prefix="gpu-") as directory, exporter(Path(directory)) as scrape:
        work = Path(directory)
        record["exporter_idle"] = compared(scrape, 10)
        for part in [only] if only else PARTS:
            steps = engine(work, Path(binary), scrape) if part == "model_server" else fleet(work, Path(binary), Path(ollama))
            record[part] = {"date": record["date"]}
            try:
                for what, figures in steps:
                    record[part][what] = figures
                    keep("gpu", record)
            except (RuntimeError, TimeoutError, OSError, httpx.HTTPError, aiohttp.ClientError) as error:
                # The other part is worth as much.
                record[part]["failed"] = str(error)
                keep("gpu", record)
    if any("failed" in record[part] for part in PARTS if part in record):
        raise SystemExit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
