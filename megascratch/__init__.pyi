from megascratch.api.language_model import load as load
from megascratch.api.proof import dry_run_rank as dry_run_rank
from megascratch.api.proof import verify as verify
from megascratch.api.run_config import RunConfig as Config
from megascratch.api.text_tokenizer import TextTokenizer as Tokenizer
from megascratch.api.token_dataset import TokenDataset as TokenDataset
from megascratch.api.token_dataset import preprocess as preprocess
from megascratch.api.training import RunFailed as RunFailed
from megascratch.api.training import pretrain as pretrain
from megascratch.config.errors import SettingError as SettingError
from megascratch.config.errors import UserError as UserError
from megascratch.config.registry import register as register

__all__ = [
    "Config",
    "RunFailed",
    "SettingError",
    "TokenDataset",
    "Tokenizer",
    "UserError",
    "__version__",
    "dry_run_rank",
    "load",
    "preprocess",
    "pretrain",
    "register",
    "verify",
]

__version__: str
