from vrm.models.base import RewardOutput as RewardOutput
from vrm.models.reward_model import RewardBenchPipeline as RewardBenchPipeline
from vrm.models.reward_model import RewardModel as RewardModel

__version__: str
