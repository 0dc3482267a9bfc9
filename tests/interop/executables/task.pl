#!/usr/bin/perl
# As task.sh.
use strict;
use warnings;

binmode STDIN;
print "<$_>\n" for @ARGV;
my $read = do { local $/; <STDIN> } // '';
print length($read), "\n$ENV{TASK_WORD}\n";
exit($ENV{TASK_STATUS} // 0);
