"""Commands for using a published model: predict and demo."""
