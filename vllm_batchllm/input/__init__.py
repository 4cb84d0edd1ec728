# SPDX-License-Identifier: Apache-2.0
"""Files of prompts, chats, OpenAI bodies and traces, read and tokenised."""
