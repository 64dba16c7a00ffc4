"""What is sent: JPEG photos, each as a form that is encoded once, so that all requests cost the client the same."""

from __future__ import annotations

from pathlib import Path

from loadtest.traffic import LabelledImage, ScenarioError

NAMES = (  # those that come with scikit-image, without a download
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
    """Every JPEG of the folder; the default one is made of scikit-image's photos. ScenarioError if there is none."""
    if folder == FOLDER and not folder.exists():
        write_photos(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    if not paths:
        raise ScenarioError(f"no .jpg in {folder}")
    return paths


def write_photos(folder: Path) -> None:
    """Scikit-image's, whole or not at all."""
    import skimage.data
    from PIL import Image

    work = folder.with_name(f"{folder.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        Image.fromarray(getattr(skimage.data, name)()).save(work / f"{name}.jpg", quality=QUALITY)
    work.rename(folder)


def form(path: Path, label: str) -> LabelledImage:
    """A form with the photo as its part `image`."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return LabelledImage(head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode(), label)
