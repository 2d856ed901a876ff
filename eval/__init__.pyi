from .running.after_training import check_evaluation as check_evaluation
from .running.after_training import evaluate_finished as evaluate_finished
from .running.after_training import evaluate_run as evaluate_run
from .running.after_training import is_evaluation_missing as is_evaluation_missing
