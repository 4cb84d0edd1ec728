# SPDX-License-Identifier: Apache-2.0
"""Which waiting request is next."""
