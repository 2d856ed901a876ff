from .build import build_sample as build_sample
from .folder import SAMPLE_DIR as SAMPLE_DIR
from .folder import is_complete as is_complete
