import concurrent.futures
import os
import pathlib
import pickle

import av
import fixtures
import numpy as np
import pytest

from molmoact2_jax.data import video

FPS, LENGTH = 15, 30


@pytest.fixture(scope="module", params=["libx264", "libsvtav1"])
def clip(request, tmp_path_factory):
    """(path, every frame as PyAV decodes them in a row)."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    fixtures.encode(path, np.stack([fixtures.picture(3, t, 1) for t in range(LENGTH)]), request.param, FPS)
    return str(path), decode(path)


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_by_time_equal_a_sequential_decode(clip):
    path, every = clip
    decoder, rng = video.Decoder(path), np.random.default_rng(0)
    assert decoder.num_frames == LENGTH
    for _ in range(20):
        wanted = rng.integers(0, LENGTH, 5)
        np.testing.assert_array_equal(decoder.read((wanted / FPS).tolist()), every[wanted])
    assert [fixtures.code(frame)[:2] for frame in every] == [(3, t) for t in range(LENGTH)]


def test_a_time_between_frames_before_or_after_the_video_is_refused(clip):
    decoder = video.Decoder(clip[0])
    for time in (0.5 / FPS, -1.0, LENGTH / FPS, 100.0):
        with pytest.raises(ValueError, match=r"clip.mp4: no frame within 0.001 s"):
            decoder.read([time])
    np.testing.assert_array_equal(decoder.read([2 / FPS + 0.0009])[0], clip[1][2])


def test_long_groups_of_pictures_and_b_frames_are_exact(tmp_path):
    path = tmp_path / "gop.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "12", "bf": "3"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for t in range(40):
            frame = av.VideoFrame.from_ndarray(fixtures.picture(0, t, 0), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    every, decoder = decode(path), video.Decoder(str(path))
    for t in (*np.random.default_rng(1).permutation(40), 0, 39, 12, 11):
        np.testing.assert_array_equal(decoder.read([t / FPS])[0], every[t])


def test_joined_videos_keep_every_frame_and_its_time(tmp_path):
    for codec in ("libx264", "libsvtav1"):
        paths, lengths = [tmp_path / f"{codec}{e}.mp4" for e in range(3)], (4, 7, 5)
        for e, path in enumerate(paths):
            fixtures.encode(path, np.stack([fixtures.picture(e, t, 0) for t in range(lengths[e])]), codec, FPS)
        joined = tmp_path / f"{codec}.mp4"
        video.concatenate(paths, joined, [n / FPS for n in lengths])
        got = video.Decoder(str(joined)).read((np.arange(16) / FPS).tolist())
        np.testing.assert_array_equal(got, np.concatenate([decode(path) for path in paths]))


def right_or_refused(path, every):
    """Reads every frame of a damaged video; returns how many were refused and checks the others."""
    refused = 0
    for t, frame in enumerate(every):
        try:
            np.testing.assert_array_equal(video.Decoder(str(path)).read([t / FPS])[0], frame)
        except ValueError:
            refused += 1
    return refused


def test_a_video_cut_short_is_refused(clip, tmp_path):
    data, path = pathlib.Path(clip[0]).read_bytes(), tmp_path / "cut.mp4"
    for keep in (0, 100, len(data) // 2):
        path.write_bytes(data[:keep])
        with pytest.raises(ValueError, match=r"cut.mp4: no video can be opened"):
            video.Decoder(str(path))
    path.write_bytes(data[:-600])  # inside the tables at the end
    right_or_refused(path, clip[1])
    with pytest.raises(ValueError, match=r"absent.mp4: no video can be opened"):
        video.Decoder(str(tmp_path / "absent.mp4"))


def test_a_video_whose_pictures_were_lost_is_refused_from_there_on(clip, tmp_path):
    source, path = pathlib.Path(clip[0]), tmp_path / "streamed.mp4"
    with av.open(str(source)) as given, av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream, opaque=True)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    assert right_or_refused(path, clip[1]) == 0
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    assert 3 <= right_or_refused(path, clip[1]) <= LENGTH // 2


def test_bytes_that_changed_inside_h264_give_the_right_frame_or_an_error(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "clip.mp4"
    waves = np.stack([fixtures.picture(3, t, 1, (96, 128)) for t in range(LENGTH)])
    fixtures.encode(path, waves // 2 + rng.integers(0, 30, waves.shape, np.uint8), "libx264", FPS)
    every, data = decode(path), bytearray(path.read_bytes())
    for place in rng.integers(1000, len(data) - 3000, 5):
        data[place : place + 20] = rng.bytes(20)
    path.write_bytes(data)
    assert 1 <= right_or_refused(path, every) <= 10


def test_decoders_are_shared_by_threads_and_pickle_closed(clip, tmp_path):
    path, every = clip
    decoders = video.Decoders(limit=1)
    other = tmp_path / "other.mp4"
    fixtures.encode(other, np.stack([fixtures.picture(5, t, 0) for t in range(4)]), "libx264", FPS)

    def read(t):
        decoders.read(str(other), [(t % 4) / FPS])
        return decoders.read(path, [t / FPS])[0]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(read, range(LENGTH))), every)
    again = pickle.loads(pickle.dumps(decoders))
    np.testing.assert_array_equal(again.read(path, [0.0])[0], every[0])
    decoders.close()
    np.testing.assert_array_equal(decoders.read(path, [0.0])[0], every[0])


def test_an_unfinished_video_has_no_name(tmp_path):
    encoder = video.Encoder(tmp_path / "x.mp4", FPS, (48, 64), "libx264")
    encoder.add(fixtures.picture(0, 0, 0))
    assert not (tmp_path / "x.mp4").exists()
    encoder.close()
    assert video.Decoder(str(tmp_path / "x.mp4")).num_frames == 1


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="reads /proc")
def test_files_that_are_dropped_leave_no_memory_behind(tmp_path):
    path = tmp_path / "clip.mp4"
    fixtures.encode(path, np.stack([fixtures.picture(0, t, 0) for t in range(20)]), "libx264", 10)

    def held():
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def read_and_drop(count):
        for _ in range(count):
            video.Decoder(str(path)).read([0.5, 1.2])

    read_and_drop(100)
    before = held()
    read_and_drop(600)
    assert held() - before < 6e6  # a dropped file kept 27 kB
