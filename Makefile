# What a newcomer types. The work is in scripts/; every target can be repeated.

.PHONY: help demo test build check guest setup clean

help:
	@echo 'make demo          a cluster on this machine, taken through its life; KEEP=1 leaves it running'
	@echo 'make test          all tests: format, lints, units, simulation, real daemons and guests'
	@echo 'make build         target/release/cardume'
	@echo 'make check         format and lints only'
	@echo 'make guest         kernel, initramfs and OS definition of the guests, in /var/cache/cardume'
	@echo 'make setup         only install what is missing on this machine'
	@echo 'make clean         remove what was built here; not what was installed, nor /var/cache/cardume'
	@echo
	@echo 'demo, test, guest and setup need root on Debian 12.'

demo:
	@KEEP='$(KEEP)' scripts/demo.sh

test:
	@scripts/test.sh

build:
	@scripts/build.sh

check:
	@scripts/check.sh

guest: setup
	@scripts/guest.sh

setup:
	@scripts/setup.sh

clean:
	@rm -rf target guest/target
