"""Specialises Molmo2 in embodied reasoning.

molmoact2 train --config=configs/er_stage1.py --config.model.init_from=CHECKPOINT --config.data.vlm_root=DIR
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "runs/er_stage1"
    config.steps = 20_000  # training.md 1.1
    config.batch_size = 64  # rows; 4 on each of 16 devices (training.md 1.1)
    config.model = dict(
        init_from="checkpoints/Molmo2-4B",
        overrides=dict(expert=None),
    )
    config.data = dict(
        vlm_root="data/vlm",
        vlm_mixture="er_stage1",  # training.md 4.3
        vlm_rate=1.0,  # no robots
        tokens=4200,
        vlm_tokens=4200,  # training.md 1.1
        crops=51,  # ours: the frames of 81 tokens that 4 200 tokens hold; the paper gives no number (training.md 8, 7)
        workers=4,
        prefetch=4,
    )
    config.embedding = "lm_head"  # training.md 1.4
    config.optimizer = dict(
        peak_rates=dict(vit=5e-6, connector=5e-6, llm=1e-5, action_expert=5e-5),  # training.md 1.2
        warmup_steps=200,  # training.md 1.2
        weight_decay=0.01,  # these two stages only; embeddings and norms are exempt (training.md 1.2)
    )
    config.augment = "none"  # pointing targets do not follow a crop or a rotation (training.md 4.6)
    config.save = dict(every=1_000, keep=dict(latest=2))  # training.md 1.7
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
