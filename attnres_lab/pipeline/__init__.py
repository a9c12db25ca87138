"""Pipeline parallelism: stages of the trunk on different processes, each sent only what it does not
hold (cross-stage caching, arXiv 2603.15031, section 4.1).
"""

from attnres_lab.pipeline.config import PipelineConfig

__all__ = ["PipelineConfig"]
