"""The environment variables of a model's process: few, and no secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from meshnode.models.runtimes.base import Opening

_KEPT_VARIABLES: Final = (
    "PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "WINDIR",
    "COMSPEC", "PATHEXT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY",
    "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "VIRTUAL_ENV", "POPART_CACHE_DIR",
)  # fmt: skip
"""Variables that a model's process sees; all others (tokens, keys) it does not."""
_KEPT_PREFIXES: Final = (
    "LC_", "CUDA_", "NVIDIA_", "ROCR_", "HIP_", "HSA_", "HF_", "TRANSFORMERS_", "TORCH_", "PYTORCH_", "XLA_",
    "JAX_", "TF_", "KERAS_", "ORT_", "OMP_", "MKL_", "KMP_", "PYTORCH", "POPLAR_", "POPTORCH_", "IPU_", "MODEL_",
)  # fmt: skip
_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
_HIDDEN: Final = ("HF_TOKEN", "HF_HUB_TOKEN")
MARK_VARIABLE: Final = "MESHNODE_WORKER"
"""Holds the name of the process's folder, in all that it starts."""


def environment_of(given: Mapping[str, str], opening: Opening, folder: Path) -> dict[str, str]:
    """Return the variables of a model's process."""
    kept = dict(_kept(given))
    kept.update(dict.fromkeys(_THREAD_VARIABLES, str(max(1, opening.threads))))
    kept.update(
        {"TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder), "HOME": str(folder)}
    )
    kept["PYTHONUNBUFFERED"] = "1"
    kept[MARK_VARIABLE] = folder.name
    if opening.cache_folder is not None:
        kept["MESHNODE_CACHE_FOLDER"] = str(opening.cache_folder.resolve())
    return kept


def _kept(given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in given.items():
        if (name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)) and name not in _HIDDEN:
            yield name, value
