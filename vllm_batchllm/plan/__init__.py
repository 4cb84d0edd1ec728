# SPDX-License-Identifier: Apache-2.0
"""What sharing prefixes can save on a file of prompts, told before anything is run."""
