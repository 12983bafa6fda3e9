"""A user's folder of images: all files are checked, read without loss, and compared later."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import inventory
from pipeline.data.config import DataConfig
from pipeline.data.files import DataError
from pipeline.data.images import SHOWN, decode
from pipeline.data.prepare import prepare
from pipeline.data.prepared import load_prepared, require_same_images
from pipeline.files import file_sha256, read_json
from tests.pipeline.data.conftest import jpeg


def prepared(root: Path, out: Path, **more: object) -> Path:
    prepare(DataConfig(name="imagefolder", root=str(root), size=24, **more), out)
    return out


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_every_bad_file_is_found_before_any_training(folder_root: Path, tmp_path: Path) -> None:
    damage(folder_root / "val/n03/n03_1.JPEG")
    (folder_root / "train/n01/n01_2.JPEG").write_bytes(b"")
    (folder_root / "train/n02/gone.png").symlink_to("nowhere")
    with pytest.raises(DataError) as caught:
        prepared(folder_root, tmp_path / "p")
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 25 images cannot be used:"
    assert [line.split(":")[0].rpartition("/")[2] for line in lines[1:]] == [
        "n01_2.JPEG",
        "gone.png",
        "n03_1.JPEG",
    ]
    assert not (tmp_path / "p").exists()


def test_a_long_list_is_cut_and_counted(folder_root: Path, tmp_path: Path) -> None:
    for i in range(SHOWN + 5):
        (folder_root / f"train/n01/bad{i}.png").write_bytes(b"not a picture")
    with pytest.raises(DataError) as caught:
        prepared(folder_root, tmp_path / "p")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{SHOWN + 5} of ")
    assert lines[-1] == "  ... and 5 more"
    assert len(lines) == SHOWN + 2


def test_good_files_are_read_once(
    folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = folder_root / "train/n01/bad.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(DataError):
        prepared(folder_root, tmp_path / "p")
    bad.unlink()
    decoded: list[Path] = []
    monkeypatch.setattr(inventory, "decode", lambda path, _: decoded.append(path))
    prepared(folder_root, tmp_path / "p")
    assert decoded == []
    jpeg(folder_root / "train/n01/new.jpg", (40, 40), 7)
    prepared(folder_root, tmp_path / "p")
    assert [path.name for path in decoded] == ["new.jpg"]


def test_all_class_folders_that_cannot_be_used_are_listed(
    folder_root: Path, tmp_path: Path
) -> None:
    for name in ("n08", "n09"):
        (folder_root / "val" / name).mkdir()
    with pytest.raises(DataError, match=r"(?s)2 class folders .*val/n08: no .*val/n09: no"):
        prepared(folder_root, tmp_path / "p")


def test_sixteen_bit_grey_keeps_its_levels(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "g.png")
    found = np.asarray(decode(tmp_path / "g.png"))
    expected = np.rint(levels / 257).astype(np.uint8)
    assert np.array_equal(found, np.repeat(expected[:, :, None], 3, axis=2))


def test_pixels_of_32_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path, "TIFF")
    with pytest.raises(DataError, match=r"f\.png: cannot be decoded \(32-bit pixels, mode F"):
        decode(path)


def test_names_with_a_dot_in_front_are_no_data(
    folder_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = read_json(prepared(folder_root, tmp_path / "plain") / "train.json")
    jpeg(folder_root / "train/.ipynb_checkpoints/a.jpg", (40, 40), 1)
    jpeg(folder_root / "train/n01/.cache/b.jpg", (40, 40), 1)
    shutil.copy(folder_root / "train/n01/n01_0.JPEG", folder_root / "train/n01/._n01_0.JPEG")
    (folder_root / "train/n01/notes.txt").write_text("")
    with caplog.at_level(logging.INFO, "espalier"):
        out = prepared(folder_root, tmp_path / "p")
    assert read_json(out / "train.json") == plain
    assert load_prepared(out).info.num_classes == 3
    said = f"{folder_root}: left out, as they are no images: 1 .txt, 3 names that begin with a dot"
    assert said in caplog.text


def test_content_is_in_the_card(folder_root: Path, tmp_path: Path) -> None:
    def card() -> str:
        return file_sha256(prepared(folder_root, tmp_path / "p") / "card.json")

    before = card()
    path = folder_root / "train/n01/n01_0.JPEG"
    old = path.read_bytes()
    jpeg(path, (40, 60), seed=99)
    replaced = card()
    path.write_bytes(old)
    assert card() == before != replaced


@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: jpeg(root / "val/n01/new.jpg", (40, 40), 7), "1 added, e.g. val/n01/new.jpg"),
        (lambda root: (root / "train/n02/n02_0.JPEG").unlink(), "1 removed, e.g. train/n02/n02_0"),
        (lambda root: jpeg(root / "train/n01/n01_0.JPEG", (40, 60), 99), "1 replaced, e.g. train"),
        (lambda root: damage(root / "val/n03/n03_0.JPEG"), "1 replaced, e.g. val/n03/n03_0.JPEG"),
    ],
    ids=["added", "removed", "replaced", "damaged"],
)
def test_a_change_after_prepare_is_refused(
    folder_root: Path, tmp_path: Path, change, told: str, cached: bool
) -> None:
    out = prepared(folder_root, tmp_path / "p", val_size=3)
    change(folder_root)
    if not cached:
        inventory.cache_path(out).unlink()
    for use in (load_prepared(out).train, load_prepared(out).test):
        with pytest.raises(DataError, match=f"changed after prepare-data: {told}"):
            use()
    with pytest.raises(DataError, match="dvc repro -f prepare-data"):
        require_same_images(out)


def test_the_time_of_a_file_is_not_its_content(
    folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = prepared(folder_root, tmp_path / "p")
    os.utime(folder_root / "train/n01/n01_0.JPEG", (1, 1))
    load_prepared(out).train()
    monkeypatch.setattr(inventory, "_digest", lambda path: pytest.fail(f"{path} read again"))
    load_prepared(out).train()


def test_a_damaged_replacement_is_not_taken_for_checked(folder_root: Path, tmp_path: Path) -> None:
    out = prepared(folder_root, tmp_path / "p")
    damage(folder_root / "train/n01/n01_0.JPEG")
    with pytest.raises(DataError, match="1 replaced"):
        require_same_images(out)
    with pytest.raises(DataError, match="1 of 24 images cannot be used"):
        prepared(folder_root, out)


def test_a_report_needs_no_images(folder_root: Path, tmp_path: Path) -> None:
    require_same_images(tmp_path / "nothing prepared")
    out = prepared(folder_root, tmp_path / "p")
    shutil.rmtree(folder_root)
    require_same_images(out)
    with pytest.raises(DataError, match="train is missing"):
        load_prepared(out).test()


def test_a_slice_reads_its_own_images_only(folder_root: Path, tmp_path: Path) -> None:
    out = prepared(folder_root, tmp_path / "p", limit=3)
    digests = read_json(out / "images.json")["files"].values()
    assert len(digests) == 24
    assert sum(digest is not None for digest in digests) == 3 + 6
    jpeg(folder_root / "train/n01/new.jpg", (40, 40), 7)  # moves the draw of the slice
    with pytest.raises(DataError, match="1 added"):
        load_prepared(out).train()
