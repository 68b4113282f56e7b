"""Fine-tunes on a set of your own robot, 50 to 500 episodes; `molmoact2 data stats` writes its statistics first.

molmoact2 train --config=configs/finetune_small.py --config.model.init_from=CHECKPOINT
    --config.data.robots[0].path=DIR --config.data.robots[0].tag=TAG
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "runs/finetune_small"
    config.steps = 50_000  # training.md 1.1, the real-world tasks
    config.batch_size = 16  # rows; 2 on each of 8 devices (training.md 1.1)
    config.model = dict(
        init_from="checkpoints/MolmoAct2",  # the released post-trained model
    )
    config.data = dict(
        robots=(
            dict(
                path="data/mine",
                tag="mine",
                meaning="",  # explains the columns, if the tag does not
                quarantine="",  # file of samples that are never drawn, which `data check` writes
            ),
        ),
        tokens=2100,  # training.md 1.1
        robot=dict(action_format="both", annotated_task=False),  # training.md 1.7
        held_out=10,  # ours: every tenth episode, for the error that `evaluate` reports from step 0
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
    config.save = dict(every=5_000, keep=dict(latest=10))  # the best is chosen by rollouts (training.md 5)
    config.evaluate = dict(every=1_000, batches=4, episodes=4)  # ours
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
