#!/usr/bin/perl
# example.pl NAME ARG…: runs a task now and prints its state and what it printed.

use v5.20;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Kingtask;

utf8::decode($_) for @ARGV;
my ($name, @args) = @ARGV or die "usage: $0 NAME ARG…\n";
my $client = Kingtask->new;
my $task = eval {
    my $id = $client->submit($name, \@args, retry => [ 1, 5 ]);
    print STDERR "$id\n";
    $client->wait($id, 60);
};
if (my $error = $@) {
    die ref $error ? "kingtask: $error\n" : $error;
}
die "still not done after a minute\n" unless $task;
print "$task->{state}: $task->{stdout}";
exit($task->{state} eq 'succeeded' ? 0 : 1);
