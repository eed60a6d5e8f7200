// Command fixturedb writes a vulnerability database with one advisory, through grype's own writer: the tests' stand-in for
// the published database, which is a download.
//
//	fixturedb DIRECTORY ECOSYSTEM PACKAGE CONSTRAINT SEVERITY
package main

import (
	"fmt"
	"os"
	"time"

	v6 "github.com/anchore/grype/grype/db/v6"
)

func write(directory, ecosystem, name, constraint, severity string) error {
	db, err := v6.NewWriter(v6.Config{DBDirPath: directory, CacheSizeKiB: 1024})
	if err != nil {
		return err
	}
	now := time.Now()
	provider := v6.Provider{ID: "github", Version: "1", DateCaptured: &now}
	if err := db.AddProvider(provider); err != nil {
		return err
	}
	advisory := &v6.VulnerabilityHandle{
		Name:       "GHSA-test-test-test",
		Status:     v6.VulnerabilityActive,
		ProviderID: provider.ID,
		Provider:   &provider,
		BlobValue: &v6.VulnerabilityBlob{
			ID:          "GHSA-test-test-test",
			Description: "An advisory of the test database.",
			Severities:  []v6.Severity{{Scheme: v6.SeveritySchemeCHML, Value: severity, Rank: 1}},
		},
	}
	if err := db.AddVulnerabilities(advisory); err != nil {
		return err
	}
	affected := &v6.AffectedPackageHandle{
		VulnerabilityID: advisory.ID,
		Vulnerability:   advisory,
		Package:         &v6.Package{Ecosystem: ecosystem, Name: name},
		BlobValue:       &v6.PackageBlob{Ranges: []v6.Range{{Version: v6.Version{Type: ecosystem, Constraint: constraint}}}},
	}
	if err := db.AddAffectedPackages(affected); err != nil {
		return err
	}
	if err := db.SetDBMetadata(); err != nil {
		return err
	}
	return db.Close()
}

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: fixturedb DIRECTORY ECOSYSTEM PACKAGE CONSTRAINT SEVERITY")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
