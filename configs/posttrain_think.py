"""Post-trains the Think model: as posttrain, with depth maps as a third of the answers and before another third.

molmoact2 train --config=configs/posttrain_think.py --config.run_dir=DIR
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.run_dir = "runs/posttrain_think"
    config.steps = 100_000  # training.md 1.1
    config.batch_size = 128  # rows; 2 on each of 64 devices (training.md 1.1)
    config.model = dict(
        init_from="runs/pretrain",
        sizes="4b",  # with an expert, which the pre-trained model lacks
        overrides=dict(depth_reasoning=True),  # no gate before fine-tuning (model.md 1.5)
        side_files="checkpoints/MolmoAct2",  # tokenizer, statistics, action codec
    )
    config.data = dict(
        robots=(  # `molmoact2 data depth` writes each companion beside its dataset
            dict(path="data/yam/*", tag="yam_dual_molmoact2", depth={"": "data/yam/*_depth"}),  # 737 (training.md 4.1)
            dict(path="data/so100/*", tag="so100_so101_molmoact2", depth={"": "data/so100/*_depth"}),  # 1 220
            dict(path="data/droid", tag="franka_droid", depth={"": "data/droid_depth"}),
            dict(path="data/molmoact/*", tag="franka_molmoact", depth={"": "data/molmoact/*_depth"}),  # two places
            dict(path="data/bc_z", tag="google_robot_bc_z", depth={"": "data/bc_z_depth"}),
            dict(path="data/fractal", tag="google_robot_fractal", depth={"": "data/fractal_depth"}),
            dict(path="data/bridge", tag="widowx_bridge", depth={"": "data/bridge_depth"}),
        ),
        tag_rates=dict(  # training.md 4.1
            yam_dual_molmoact2=0.30,
            so100_so101_molmoact2=0.30,
            franka_droid=0.30,
            franka_molmoact=0.025,
            google_robot_bc_z=0.025,
            google_robot_fractal=0.025,
            widowx_bridge=0.025,
        ),
        vlm_root="data/vlm",
        vlm_mixture="general",  # training.md 4.2
        vlm_rate=0.1,  # training.md 1.1
        vlm="separate",  # a step is all robots or all multimodal (training.md 3.4)
        tokens=2100,  # training.md 1.1
        vlm_tokens=4200,  # training.md 1.1
        crops=8,  # training.md 3.1
        chunks=5,  # training.md 3.3
        robot=dict(
            action_format="both",
            styles=dict(robot_action=1.0, robot_depth=1.0, robot_depth_action=1.0),  # thirds (training.md 4.10)
            annotated_task=True,  # training.md 1.7
            camera_order="episode",  # training.md 1.7
        ),
        workers=4,  # training.md 1.7
        prefetch=4,
    )
    config.loss = dict(
        num_samples=4,  # training.md 1.1
        insulate=True,  # paper; the README command leaves it off (training.md 1.5)
    )
    config.embedding = "added_tokens"  # training.md 1.4
    config.optimizer = dict(
        peak_rates=dict(vit=5e-6, connector=5e-6, llm=1e-5, action_expert=5e-5),  # training.md 1.2
        warmup_steps=200,  # training.md 1.2
    )
    config.save = dict(every=10_000, keep=dict(latest=20))  # training.md 1.7
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    return config
