from .gpt2 import gpt2_encoding as gpt2_encoding
from .gpt2 import merge_ranks as merge_ranks
from .kinds import ByteTokenizer as ByteTokenizer
from .kinds import NotTokenizable as NotTokenizable
from .kinds import TiktokenTokenizer as TiktokenTokenizer
from .kinds import Tokenizer as Tokenizer
from .kinds import open_tokenizer as open_tokenizer
