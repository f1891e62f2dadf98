"""`python -m mindgw` is `mindgw`."""

import sys

from mindgw.cli.start import main

sys.exit(main())
