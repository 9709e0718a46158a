"""What elbolab's training imports, and nothing done with it: the memory that this takes."""

import elbolab_training
from common import arguments, report

if __name__ == "__main__":
    arguments()
    report(imported=elbolab_training.__name__)
