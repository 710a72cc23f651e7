"""The pages of a release: model card and report, with their charts."""
