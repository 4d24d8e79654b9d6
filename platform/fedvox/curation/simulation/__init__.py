"""A collection whose errors are known: brains with planted corruptions, and a reviewer who repairs what is asked."""
