"""Photos to send: JPEGs, each as a form that is encoded once, so that every request costs the client the same."""

from __future__ import annotations

from pathlib import Path

from loadtest.traffic import LabelledImage, ScenarioError, is_meant, legible

NAMES = (  # photos that scikit-image contains, without a download
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
)
FOLDER = Path("images/photos")
QUALITY = 90
BOUNDARY = "convserve-peers"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def find_photos(folder: Path) -> list[Path]:
    """Return the JPEGs of a folder; the default folder is created from scikit-image's photos.

    Raises ScenarioError if there are none.
    """
    if folder == FOLDER and not folder.exists():
        write_photos(folder)
    jpegs = (path for path in folder.glob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    paths = sorted(path for path in jpegs if is_meant(path, folder))
    if not paths:
        raise ScenarioError(f"no .jpg in {folder}")
    return paths


def write_photos(folder: Path) -> None:
    """Write scikit-image's photos as JPEGs, all of them or none."""
    import skimage.data
    from PIL import Image

    work = folder.with_name(f"{folder.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.fromarray(getattr(skimage.data, name)()).save(work / f"{name}.jpg", quality=QUALITY)
    work.rename(folder)


def form(path: Path, label: str) -> LabelledImage:
    """Return a multipart form with the photo as its part `image`."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{legible(path.name)}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return LabelledImage(head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode(), label)
