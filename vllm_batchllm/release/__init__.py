# SPDX-License-Identifier: Apache-2.0
"""When a server of whole batches is to release the next one, worked out before it is built."""
