"""``python -m fastrobust`` is ``fastrobust``."""

import sys

from fastrobust.cli.main import main

sys.exit(main())
