"""Make a release of a folder of artifacts (`ship`), and check one (`verify_release`)."""
