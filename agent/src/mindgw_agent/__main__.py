"""`python -m mindgw_agent`: the same as the script `mindgw-agent`."""

import sys

from mindgw_agent.cli import main

sys.exit(main())
