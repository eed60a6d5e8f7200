"""`make pins`: ask the registries what the tags of images/pins.toml are now, and write the digests there and into the Dockerfiles.

With names of models (`registry.ollama.ai/library/qwen3-coder:30b`) it prints their digests instead, for `models` of a stack.
"""

import argparse
import asyncio
import datetime
import hashlib
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from image_verifier.registry import Reference, Registries, RegistryError

IMAGES = Path(__file__).parent
_TIMEOUT = aiohttp.ClientTimeout(total=60)
_NO_DIGEST = f"sha256:{'0' * 64}"


def bases(images: Path = IMAGES) -> dict[str, dict[str, Any]]:
    """Of pins.toml: name to tag, digest, source and date."""
    return tomllib.loads((images / "pins.toml").read_text())["bases"]


def unpinned(names: Sequence[str], images: Path = IMAGES) -> list[str]:
    """Bases of the named images that have no digest yet."""
    texts = [(images / name / "Dockerfile").read_text() for name in names]
    stands_on = {base.partition(":")[0] for text in texts for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE)}
    return sorted(name for name, pin in bases(images).items() if name in stands_on and not pin["digest"])


async def ask(references: Sequence[str], mirror: str = "") -> dict[str, str]:
    """Image or model with its tag, to the digest of its manifest. Raises RegistryError."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        registries = Registries(session, mirror)
        return {reference: await _digest(registries, reference) for reference in references}


async def _digest(registries: Registries, reference: str) -> str:
    name, _, tag = reference.rpartition(":")
    manifest = await registries.manifest(Reference.parse(f"{name}@{_NO_DIGEST}"), tag)
    if manifest is None:
        raise RegistryError(f"{reference}: got no such tag, want one; correct it")
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def write(found: Mapping[str, str], images: Path = IMAGES) -> list[str]:
    """Put the digests, by `name:tag`, into pins.toml and the Dockerfiles. Returns a line for each that changed."""
    changed: list[str] = []
    path = images / "pins.toml"
    text = path.read_text()
    for name, pin in bases(images).items():
        digest = found[f"{name}:{pin['tag']}"]
        if digest == pin["digest"]:
            continue
        changed.append(f"{name}:{pin['tag']}: {pin['digest'] or 'nothing'} -> {digest}")
        head, section, rest = text.partition(f'[bases."{name}"]\n')
        body, blank, after = rest.partition("\n\n")
        body = re.sub(r'^digest = ".*"$', f'digest = "{digest}"', body, flags=re.MULTILINE)
        body = re.sub(r'^date = ".*"$', f'date = "{datetime.datetime.now(datetime.UTC).date()}"', body, flags=re.MULTILINE)
        text = head + section + body + blank + after
        for dockerfile in images.glob("*/Dockerfile"):
            old = dockerfile.read_text()
            new = re.sub(rf"^(FROM {re.escape(name)}:{re.escape(pin['tag'])})(@\S+)?(?=\s)", rf"\1@{digest}", old, flags=re.MULTILINE)
            if new != old:
                dockerfile.write_text(new)
    path.write_text(text)
    return changed


def main(arguments: Sequence[str] | None = None, images: Path = IMAGES) -> int:
    parser = argparse.ArgumentParser(prog="python -m images.pins", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", help="host/namespace/model:tag")
    parser.add_argument("--mirror", default="", help="registry that is asked instead of each image's own: http(s)://HOST")
    options = parser.parse_args(arguments)
    try:
        if options.models:
            for model, digest in asyncio.run(ask(options.models, options.mirror)).items():
                print(f"{model}: {digest}")
            return 0
        tags = [f"{name}:{pin['tag']}" for name, pin in bases(images).items()]
        changed = write(asyncio.run(ask(tags, options.mirror)), images)
    except (RegistryError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(changed) or "every digest is as it was")
    return 0


if __name__ == "__main__":
    sys.exit(main())
