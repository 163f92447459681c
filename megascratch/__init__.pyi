from megascratch.config.errors import SettingError as SettingError
from megascratch.config.errors import UserError as UserError
from megascratch.config.registry import register as register
from megascratch.library.language_model import load as load
from megascratch.library.proof import dry_run_rank as dry_run_rank
from megascratch.library.proof import verify as verify
from megascratch.library.run_config import RunConfig as Config
from megascratch.library.text_tokenizer import TextTokenizer as Tokenizer
from megascratch.library.token_dataset import TokenDataset as TokenDataset
from megascratch.library.token_dataset import preprocess as preprocess
from megascratch.library.training import RunFailed as RunFailed
from megascratch.library.training import pretrain as pretrain

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
