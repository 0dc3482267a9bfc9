// Runs the executable "example" with two numbers in two seconds, retried twice if it fails, and prints its output.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"kingtask"
)

func main() {
	client := kingtask.New(strings.Split(cmp.Or(os.Getenv("KINGTASK_BROKER"), "127.0.0.1:9595"), ",")...)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	task := kingtask.Task{Name: "example", Args: []string{"12", "45"}, Delay: 2, Retry: []float64{5, 8}}
	outcome, err := client.Submit(ctx, task)
	if err != nil {
		log.Fatal(err)
	}
	record, err := client.Wait(ctx, outcome.ID, 30*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s", record.State, record.Stdout)
}
