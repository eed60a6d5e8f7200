"""Run in `model-server-vllm`, by the server's Python and then by vLLM's, in the environment that the server gives it: what a first start on
a GPU compiles does compile, for a Hopper, the newest that DeepGEMM and FlashInfer share with FlashAttention."""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DRIVER = Path(tempfile.gettempdir(), "driver")
GEMM = "#include <deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh>\n"


def main() -> None:
    if len(sys.argv) == 1:
        _server()
    with tempfile.TemporaryDirectory() as work:
        _vllm(sys.argv[1], Path(work))


def _server() -> None:
    """Never returns."""
    vllm = importlib.import_module("model_server.vllm")
    importlib.import_module("model_server.app")
    DRIVER.mkdir()
    # In the place of the driver, which a node brings.
    compiler = ["gcc", "-shared", "-x", "c", "/dev/null", "-o", DRIVER / "libcuda.so.1", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(compiler, check=True)
    (DRIVER / "libcuda.so").symlink_to("libcuda.so.1")
    python = os.environ["MODEL_SERVER_VLLM_PYTHON"]
    environment = vllm.environment(os.environ, python, str(DRIVER / "home"))
    more = {"FLASHINFER_CUDA_ARCH_LIST": "9.0a", "LIBRARY_PATH": str(DRIVER), "TRITON_LIBCUDA_PATH": str(DRIVER)}
    os.execve(python, [python, __file__, vllm.MODULE], environment | more)  # noqa: S606


def _vllm(module: str, work: Path) -> None:
    importlib.import_module(module)
    assert not importlib.import_module("vllm.envs").VLLM_USE_FLASHINFER_SAMPLER
    assert importlib.import_module("vllm.utils.flashinfer").has_flashinfer(), "its compiler or ninja is not found"
    importlib.import_module("flashinfer.jit.page").gen_page_module().build(verbose=True)
    driver: Any = importlib.import_module("triton.backends.nvidia.driver")
    build: Any = importlib.import_module("triton.runtime.build")
    source, found = str(Path(driver.dirname, "driver.c")), (driver.library_dirs(), driver.include_dirs, driver.libraries, [])
    assert Path(build._build("cuda_utils", source, str(work), *found)).exists()
    include = Path(importlib.import_module("vllm").__path__[0], "third_party", "deep_gemm", "include")
    (work / "gemm.cu").write_text(GEMM)
    flags = ["-std=c++20", "-gencode=arch=compute_90a,code=sm_90a", "--expt-relaxed-constexpr", "-I", include]
    subprocess.run([Path(os.environ["CUDA_HOME"], "bin", "nvcc"), *flags, "-cubin", work / "gemm.cu", "-o", work / "gemm"], check=True)


if __name__ == "__main__":
    main()
