"""The conformance battery: what a CKA must obey, tested on ours and on anybody else's (`cdbench check cka`)."""
