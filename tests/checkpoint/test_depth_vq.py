import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from molmoact2_jax.checkpoint import depth_vq as files
from molmoact2_jax.checkpoint import flat
from molmoact2_jax.models import depth_vq

CFG = depth_vq.DepthVQConfig(width=2, code_dim=8, num_codes=16)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in depth_vq.shapes(CFG).items()}


def test_what_was_saved_loads_to_the_bit_with_its_sizes(params, tmp_path):
    flat.save(params, tmp_path / "new" / "codec.safetensors")
    cfg, loaded = files.load(tmp_path / "new" / "codec.safetensors")
    assert cfg == CFG
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["codec.safetensors"]


def test_a_file_without_moving_statistics_starts_them_at_its_codebook(params, tmp_path):
    kept = {name: np.asarray(v) for name, v in params.items() if name not in (depth_vq.EMA_SIZE, depth_vq.EMA_SUM)}
    safetensors.numpy.save_file(kept, tmp_path / "codec.safetensors")
    _, loaded = files.load(tmp_path / "codec.safetensors")
    restored = loaded[depth_vq.EMA_SUM] / loaded[depth_vq.EMA_SIZE][:, None]
    np.testing.assert_array_equal(restored, params[depth_vq.CODEBOOK])


def test_tensors_that_do_not_fit_are_all_listed(params, tmp_path):
    broken = {name: np.asarray(value) for name, value in params.items() if name != "decoder.4.bias"}
    broken |= {"decoder.99.bias": np.zeros(3, np.float32), "encoder.2.bias": np.zeros(7, np.float32)}
    safetensors.numpy.save_file(broken, tmp_path / "codec.safetensors")
    with pytest.raises(
        ValueError, match=r"missing \['decoder.4.bias'\], unexpected \['decoder.99.bias'\].*encoder.2.bias"
    ):
        files.load(tmp_path / "codec.safetensors")


def test_other_files_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "vae-final.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="says how to convert"):
        files.load(tmp_path / "vae-final.pt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        files.load(tmp_path / "absent.safetensors")
    safetensors.numpy.save_file({"model.x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"expected a depth VQ-VAE.*\['model'\]"):
        files.load(tmp_path / "other.safetensors")
