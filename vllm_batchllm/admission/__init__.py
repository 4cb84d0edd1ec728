# SPDX-License-Identifier: Apache-2.0
"""Whether the request at the head of the queue may start, and how large a step is."""
