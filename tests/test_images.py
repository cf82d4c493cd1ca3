"""Pictures: IDX files, the autoencoder, and the vectors and samples of a run on them."""

import dataclasses
import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from jkoflow import Block, JKOFlow, MLPVelocity
from jkoflow.checkpoint import CheckpointError
from jkoflow.data import DataError, load_dataset
from jkoflow.data.idx import read_idx, read_pictures
from jkoflow.environment import DeviceError
from jkoflow.images import AUTOENCODER_FILE, IMAGES_FILE, Autoencoder, AutoencoderConfig, prepare_latents, show_samples
from jkoflow.images.autoencoder_training import encode, reconstruction_error, train_autoencoder
from jkoflow.images.latent import mosaic
from jkoflow.metrics import spread_rows


def idx(pictures):
    return b"\x00\x00\x08\x03" + struct.pack(">3I", *pictures.shape) + pictures.tobytes()


def bars(count, side=8, seed=0):
    """Pictures of one bright bar each, upright or lying."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, side, side), np.uint8)
    for picture in pictures:
        at, bright = rng.integers(0, side - 1), rng.integers(120, 256)
        if rng.random() < 0.5:
            picture[at : at + 2] = bright
        else:
            picture[:, at : at + 2] = bright
    return pictures


def write_set(path, train=400, test=60, packed=False):
    path.mkdir(exist_ok=True)
    for name, pictures in (("train", bars(train)), ("t10k", bars(test, seed=1))):
        content = idx(pictures)
        file = path / f"{name}-images-idx3-ubyte"
        if packed:
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(content))
        else:
            file.write_bytes(content)
    return path


CONFIG = AutoencoderConfig(dim=3, channels=(8, 16), epochs=6, batch_size=20, learning_rate=5e-3)


@pytest.mark.parametrize("packed", [False, True])
def test_a_directory_of_idx_files(tmp_path, packed):
    pictures = read_pictures(write_set(tmp_path, packed=packed))
    assert [part.shape for part in pictures] == [(360, 8, 8), (40, 8, 8), (60, 8, 8)]
    assert np.array_equal(np.concatenate([pictures.train, pictures.val]), bars(400))
    assert np.array_equal(pictures.test, bars(60, seed=1))


def test_missing_idx_files_name_the_debian_package(tmp_path):
    with pytest.raises(DataError, match=r"lacks train-images-idx3-ubyte.*dataset-fashion-mnist"):
        read_pictures(tmp_path)
    write_set(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="lacks t10k-images"):
        read_pictures(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"\x00\x00\x08\x01" + content[4:], "not an IDX file of grey pictures"),
        (lambda content: content[:10], "not an IDX file of grey pictures"),
        (lambda content: content[:-1], "is damaged: it announces 5 pictures of 8 x 8 and holds 319 bytes"),
        (lambda content: content + b"\x00", "holds more than 320 bytes"),
    ],
)
def test_damaged_idx_files(tmp_path, damage, says):
    path = tmp_path / "pictures"
    path.write_bytes(damage(idx(bars(5))))
    with pytest.raises(DataError, match=says):
        read_idx(path)


def test_what_unpacks_to_more_than_it_announces_is_not_unpacked(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x03" + struct.pack(">3I", 5, 8, 6) + bytes(1 << 26)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="holds more than 240 bytes"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_damaged_gzip(tmp_path):
    path = tmp_path / "pictures.gz"
    packed = gzip.compress(idx(bars(50)))
    for content in (b"no gzip", packed[: len(packed) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is damaged"):
            read_idx(path)


def test_sets_that_do_not_fit(tmp_path):
    write_set(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(bars(5, side=12)))
    with pytest.raises(DataError, match="differ in size"):
        read_pictures(tmp_path)
    write_set(tmp_path, train=9)
    with pytest.raises(DataError, match="it takes 10 and 1"):
        read_pictures(tmp_path)


def test_the_autoencoder_learns_and_is_seeded():
    train, val = bars(400), bars(100, seed=2)
    told = []
    torch.manual_seed(1)
    first = train_autoencoder(train, val, CONFIG, seed=4, report=told.append)
    torch.manual_seed(2)  # the caller's generator plays no part
    again = train_autoencoder(train, val, CONFIG, seed=4)
    other = train_autoencoder(train, val, CONFIG, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    longer = train_autoencoder(train, val, dataclasses.replace(CONFIG, epochs=25, learning_rate=1e-2))
    blank = np.sqrt(((val / 255 - (train / 255).mean()) ** 2).mean())
    assert reconstruction_error(longer, val) < 0.6 * blank
    assert len(told) == CONFIG.epochs
    assert told[-1].startswith("autoencoder: epoch 6/6, error 0.")


def test_the_autoencoder_ends_with_its_time(monkeypatch):
    ticks = iter(range(100000))
    monkeypatch.setattr("jkoflow.images.autoencoder_training.time.monotonic", lambda: next(ticks))
    told = []
    train_autoencoder(bars(400), bars(20), CONFIG, seconds=50, report=told.append)  # a look at the clock a batch
    assert len(told) == 3  # 20 batches an epoch


def test_a_device_that_is_not_there_is_refused_first(tmp_path):
    pictures = read_pictures(write_set(tmp_path / "set"))
    with pytest.raises(DeviceError, match="got 'cuda:99'"):
        prepare_latents(pictures, CONFIG, tmp_path / "run", device="cuda:99", report=lambda text: pytest.fail(text))
    assert not (tmp_path / "run").exists()


def test_autoencoder_file(tmp_path):
    autoencoder = Autoencoder(8, 12, 3, (4, 8))
    autoencoder.save(tmp_path / "a.safetensors", CONFIG, seed=0)
    again = Autoencoder.load(tmp_path / "a.safetensors")
    pictures = torch.rand(5, 8, 12)
    vectors = autoencoder.encode(pictures)
    assert vectors.shape == (5, 3)
    assert torch.equal(again.decode(again.encode(pictures)), autoencoder.decode(vectors))
    JKOFlow(2, [Block(MLPVelocity(2))]).save(tmp_path / "flow.safetensors")
    with pytest.raises(CheckpointError, match="expected a autoencoder"):
        Autoencoder.load(tmp_path / "flow.safetensors")


def test_pictures_that_cannot_be_halved():
    with pytest.raises(DataError, match="divisible by 4 for 2 convolutions, got 8 x 10"):
        Autoencoder(8, 10)


@pytest.mark.parametrize(
    "wrong", [{"dim": 0}, {"channels": []}, {"epochs": 1.5}, {"learning_rate": 0.0}, {"noise": -1.0}]
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AutoencoderConfig(**wrong)


@pytest.mark.filterwarnings("ignore:.*are training rows, too:jkoflow.data.DataWarning")  # so few pixels repeat
def test_latents_and_samples(tmp_path):
    pictures = read_pictures(write_set(tmp_path / "set"))
    run = tmp_path / "run"
    path = prepare_latents(pictures, CONFIG, run)
    data = load_dataset(path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [360, 40, 60]
    assert data.features == ("z0", "z1", "z2")
    autoencoder = Autoencoder.load(run / AUTOENCODER_FILE)
    assert torch.equal(encode(autoencoder, pictures.test), data.test)
    flow = JKOFlow(3, [Block(MLPVelocity(3, (8,)))], data.train.mean(0), data.train.std(0), 3)
    found = show_samples(pictures, flow, run)
    assert found == {"reconstruction_error": reconstruction_error(autoencoder, pictures.test)}
    from matplotlib.image import imread

    drawn = imread(run / IMAGES_FILE)
    assert drawn.shape[:2] == (8 * (2 + 2 + 4) + 2 * 8, 16 * 8)
    real = np.concatenate(list(spread_rows(torch.from_numpy(pictures.test.copy()), 32)[:16].numpy()), axis=1)
    np.testing.assert_allclose(drawn[:8, :, 0], real / 255, atol=1 / 255)
    assert not np.array_equal(drawn[24:32], drawn[:8])  # below the gap: what the autoencoder makes of them
    first = (run / IMAGES_FILE).read_bytes()
    show_samples(pictures, flow, run)
    assert (run / IMAGES_FILE).read_bytes() == first


def test_mosaic_places_pictures_in_reading_order():
    band = torch.arange(5.0).reshape(5, 1, 1).expand(5, 2, 3) / 10
    sheet = mosaic([band, band[:1]], columns=4, gap=1)
    assert sheet.shape == (2 * 2 + 4 + 2, 4 * 3)
    np.testing.assert_allclose(sheet[0, ::3], [0.0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(sheet[2, ::3], [0.4, 1.0, 1.0, 1.0])
    assert (sheet[4:8] == 1).all()
