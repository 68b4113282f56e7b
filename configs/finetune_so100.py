"""Fine-tunes on SO-100 and SO-101 arms of the community datasets.

molmoact2 train --config=configs/finetune_so100.py --config.model.init_from=CHECKPOINT
    --config.data.robots[0].path="DIR/*"
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "runs/finetune_so100"
    config.steps = 100_000  # training.md 1.1
    config.batch_size = 64  # rows; 2 on each of 32 devices (training.md 1.1)
    config.model = dict(
        init_from="checkpoints/MolmoAct2",  # the released post-trained model
    )
    config.data = dict(
        robots=(dict(path="data/so100/*", tag="so100_so101_molmoact2"),),  # 1 220 repositories (training.md 4.1)
        tokens=2100,  # training.md 1.1
        robot=dict(
            action_format="both",
            annotated_task=True,  # training.md 1.7
            camera_order="episode",  # cameras have no common names: one shuffle per episode (training.md 4.4)
        ),
    )
    config.loss = dict(
        num_samples=8,  # K of every fine-tune (paper Table 11; README leaves 1)
        insulate=False,  # paper: on in post-training alone (training.md 1.5)
    )
    config.optimizer = dict(
        peak_rates=dict(vit=5e-6, connector=5e-6, llm=1e-5, action_expert=5e-5),  # training.md 1.2
        warmup_steps=200,  # training.md 1.2; then a cosine to a tenth
    )
    config.embedding = "lm_head"  # default of fine-tuning: the input table stays (training.md 1.4)
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
