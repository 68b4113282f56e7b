"""Fine-tunes a very small model on a laptop's CPU in minutes; every line of code is that of a large run.

molmoact2 train --config=configs/tiny.py --config.data.robots[0].path=DIR --config.data.robots[0].tag=TAG
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "runs/tiny"
    config.steps = 200
    config.batch_size = 8  # rows; enough for the eight devices of the tests
    config.dtype = "float32"  # a CPU computes bfloat16 more slowly
    config.model = dict(
        init_from="tests/golden/tiny",  # 0.7 M weights in the released format
    )
    config.data = dict(
        robots=(
            dict(path="data/mine", tag="libero", meaning=""),
        ),  # meaning: explains the columns, if the tag does not
        tokens=512,  # two or three examples
        crops=4,
        chunks=4,
        robot=dict(action_format="both"),
    )
    config.loss = dict(
        num_samples=4, dropout=0.0, head_chunk=64, remat_vit="none", remat_llm="none", remat_expert="none"
    )
    config.optimizer = dict(
        peak_rates=dict(vit=1e-4, connector=1e-4, llm=3e-4, action_expert=1e-3),  # small models bear high rates
        warmup_steps=20,
    )
    config.embedding = "lm_head"
    config.augment = "none"
    config.save = dict(every=100, keep=dict(latest=2))
    config.log = dict(every=10)
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
